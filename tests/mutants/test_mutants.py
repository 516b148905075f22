"""The suite can fail, and says why: every wrong implementation is caught by a case whose feature names its fault."""

from __future__ import annotations

import pytest

from unixent_conformance.cases import catalogue
from unixent_mutants import caught, mutants
from unixent_mutants.plain import Plain

MUTANTS = mutants()
FEATURES = {case.feature for case in catalogue()}


def test_every_wrong_loss_says_what_is_wrong_and_which_features_should_notice() -> None:
    assert len(MUTANTS) >= 155
    assert all(mutant.__doc__ and mutant.__doc__ != Plain.__doc__ for mutant in MUTANTS.values())
    assert all(mutant.features and FEATURES.issuperset(mutant.features) for mutant in MUTANTS.values())


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_loss_is_caught(name: str) -> None:
    mutant = MUTANTS[name]
    result = caught(mutant)
    assert result is not None, f"{mutant.__doc__} goes unnoticed"
    assert result.feature in mutant.features
    assert result.units > 1
