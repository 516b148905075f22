"""The suite can fail, and says why: every wrong implementation is caught by a case whose feature names its fault."""

from __future__ import annotations

import pytest

from unixent_conformance.cases import catalogue
from unixent_mutants import caught, mutants
from unixent_mutants.plain import Plain

FEATURES = {case.feature for case in catalogue()}


def test_there_are_enough_and_each_says_what_is_wrong() -> None:
    found = mutants()
    assert len(found) >= 100
    assert all(mutant.__doc__ and mutant.__doc__ != Plain.__doc__ for mutant in found.values())
    assert all(mutant.features and FEATURES.issuperset(mutant.features) for mutant in found.values())


@pytest.mark.parametrize("name", mutants())
def test_caught(name: str) -> None:
    found = caught(mutants()[name])
    assert found is not None, f"{mutants()[name].__doc__} goes unnoticed"
    assert found.feature in mutants()[name].features
    assert found.units > 1
