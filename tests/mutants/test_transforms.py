"""Wrong losses of a framework are caught under the transform that they are wrong under, and a right one is not."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from unixent_conformance.cases import catalogue
from unixent_conformance.harnesses import load
from unixent_conformance.implementation import wrap
from unixent_conformance.runner import run_case
from unixent_conformance.selection import applies
from unixent_conformance.under_test import Subject
from unixent_mutants.faults import faults, noticed

# The mode that differentiates backward, by framework.
BACKWARD = {"torch": "autograd", "jax": "grad", "mindspore": "grad"}
INSTALLED = [name for name in BACKWARD if find_spec(name)]
if not INSTALLED:
    pytest.skip(f"needs one of {', '.join(BACKWARD)}", allow_module_level=True)
FAULTS = {name: faults(name) for name in INSTALLED}


@pytest.mark.parametrize(
    ("framework", "name"), [(framework, name) for framework in FAULTS for name in FAULTS[framework]]
)
def test_a_wrong_loss_is_caught(framework: str, name: str) -> None:
    fault = FAULTS[framework][name]
    assert fault.loss.__doc__
    result = noticed(fault)
    assert result is not None, f"{fault.loss.__doc__} goes unnoticed"
    assert (result.mode, result.feature in fault.features) == (fault.mode, True)
    assert result.units > 1


@pytest.mark.parametrize("transform", ["backward", "forward", "vmap"])
@pytest.mark.parametrize("framework", INSTALLED)
def test_the_reference_loss_matches_under_every_transform(framework: str, transform: str) -> None:
    harness = load(framework)
    name = BACKWARD[framework] if transform == "backward" else transform
    (mode,) = (each for each in harness.modes if each.name == name)
    plain: Any = import_module(f"unixent_mutants.transforms_{framework}").plain
    features = ("second derivatives",) if transform == "backward" else ("class indices", "softcap")
    chosen = [case for case in catalogue(features=features) if applies(case, mode)]
    verdicts = {case.id: run_case(case, Subject(harness, wrap(plain), mode)) for case in chosen}
    assert {id: r.detail for id, r in verdicts.items() if not r.verdict.ok} == {}
    assert any(r.verdict.value == "matches" for r in verdicts.values())
