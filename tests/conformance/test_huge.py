"""Cases beyond 2^31 logits: asked for by name alone, and able to fail, which a smaller offset shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import unixent
from unixent_conformance import harnesses, run
from unixent_conformance.cases import catalogue, huge
from unixent_conformance.implementation import Implementation, of_backend
from unixent_conformance.results import Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.selection import Choice
from unixent_conformance.under_test import Subject

CASES = catalogue(features=(huge.FEATURE,))
OFFSET, CLASSES = 1 << 16, 1000


def wrapped(implementation: Implementation, offset: int) -> Implementation:
    """Offsets wrap: rows beyond are read and written where the array begins."""

    def value_and_grad(logits: Any, target: Any, **options: Any) -> Any:
        loss, gradient = unixent.value_and_grad(logits, target, **options)
        beyond = offset // logits.shape[1] + 1
        count = len(logits) - beyond
        loss[beyond:], gradient[beyond:] = loss[:count], gradient[:count]
        return loss, gradient

    return replace(implementation, value_and_grad=value_and_grad)


def judged(implementation: Implementation, offset: int, classes: int) -> Any:
    case = replace(CASES[0], build=lambda: huge.call("float16", offset, classes))
    return run_case(case, Subject(harnesses.load("numpy"), implementation, harnesses.load("numpy").modes[0]))


def test_they_are_asked_for_by_name_alone() -> None:
    assert {case.feature for case in CASES} == {huge.FEATURE}
    assert huge.FEATURE not in {case.feature for case in catalogue()}
    modes = harnesses.load("numpy").modes
    pairs = Choice(quick=True, huge=True).of(CASES, modes)
    assert [case.id for case, _ in pairs] == [case.id for case in CASES]


def test_they_have_more_logits_than_32_bits_count() -> None:
    assert all(np.prod(case.build().logits.shape, dtype=np.int64) > huge.OFFSET == 1 << 31 for case in CASES)


def test_offsets_that_wrap_are_caught_and_right_ones_are_not() -> None:
    right = of_backend("numpy")
    assert judged(right, OFFSET, CLASSES).verdict is Verdict.MATCHES
    wrong = judged(wrapped(right, OFFSET), OFFSET, CLASSES)
    assert wrong.verdict is Verdict.WRONG
    assert int(wrong.detail.partition("row ")[2].partition(":")[0]) > OFFSET // CLASSES


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_numpy_backend_matches_beyond_32_bits(dtype: str) -> None:
    report = run("numpy", features=(huge.FEATURE,), dtypes=(dtype,), huge=True)
    assert [result.verdict for result in report.cases] == [Verdict.MATCHES]
