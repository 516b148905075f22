"""Wrong losses in MindSpore are caught under the transform that they are wrong under, and a right one is not."""

from __future__ import annotations

import pytest

from unixent_conformance.cases import catalogue
from unixent_conformance.harnesses import load
from unixent_conformance.implementation import wrap
from unixent_conformance.mutation import transforms_mindspore as transforms
from unixent_conformance.mutation.faults import faults, noticed
from unixent_conformance.runner import Subject, applies, run_case

FAULTS = faults("mindspore")


@pytest.mark.parametrize("name", FAULTS)
def test_caught(name: str) -> None:
    fault = FAULTS[name]
    assert fault.loss.__doc__
    found = noticed(fault)
    assert found is not None, f"{fault.loss.__doc__} goes unnoticed"
    assert (found.mode, found.feature in fault.features) == (fault.mode, True)
    assert found.units > 1


MODES = {mode.name: mode for mode in load("mindspore").modes}


@pytest.mark.parametrize("mode", ["grad", "forward", "vmap"])
def test_a_right_loss_is_right_under_every_transform(mode: str) -> None:
    subject = Subject(load("mindspore"), wrap(transforms.plain), MODES[mode])
    features = ("second derivatives",) if mode == "grad" else ("class indices", "softcap")
    chosen = [case for case in catalogue(features=features) if applies(case, MODES[mode])]
    verdicts = {case.id: run_case(case, subject) for case in chosen}
    assert {id: r.detail for id, r in verdicts.items() if not r.verdict.ok} == {}
    assert any(r.verdict.value == "matches" for r in verdicts.values())
