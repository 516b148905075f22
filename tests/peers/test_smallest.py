"""Failing inputs of the study are made as small as they can be."""

from __future__ import annotations

import numpy as np
import pytest

import unixent_conformance as uc
from peers import record, smallest
from unixent_conformance.model import Call
from unixent_conformance.results import Result, Verdict
from unixent_conformance.runner import run_case


def _failed(id: str, implementation: str) -> tuple[Call, Result]:
    case, subject = uc.case(id), uc.subject(implementation, "numpy")
    result = run_case(case, subject)
    assert result.verdict is Verdict.WRONG
    return smallest.shrunk(case, result, subject, seconds=60)


def test_what_is_wrong_everywhere_is_shown_by_one_position_of_two_classes() -> None:
    call, result = _failed("class-weights/indices/float32-none/value", "subjects:off_by_a_thousandth")
    assert call.logits.shape == (1, 2)
    assert call.weight is None
    assert np.all(call.logits == np.round(call.logits * 4) / 4)
    assert record.spelled(call).startswith("logits=float32 [[")
    assert result.verdict is Verdict.WRONG


def test_the_lines_of_a_smaller_input_reproduce_its_failure() -> None:
    call, result = _failed("class-weights/indices/float32-none/value", "subjects:off_by_a_thousandth")
    assert f"logits=np.array({call.logits.tolist()!r}" in result.repro
    with pytest.raises(AssertionError, match="silently wrong"):
        exec(result.repro, {})


def test_a_smaller_input_fails_in_the_same_manner() -> None:
    wrong = Result(
        "a/b", "a", "eager", Verdict.WRONG, "loss at (0,): got nan, expected 0.5 +- 1e-7 (inf times the bound)"
    )
    assert smallest.manner(wrong) == ("loss", "nan", "finite")
    other = Result("a/b", "a", "eager", Verdict.WRONG, "loss: shape (0,), expected ()")
    assert smallest.manner(other) != smallest.manner(wrong)


@pytest.mark.parametrize(
    "id", ["class-probabilities/plain/float32-mean/gradient", "fused-linear/class-indices/plain/float32-none/gradients"]
)
def test_simpler_calls_are_calls_of_the_same_form(id: str) -> None:
    call = uc.case(id).build()
    for simpler in smallest.simpler(call):
        assert simpler.linear == call.linear
        assert simpler.dtype == call.dtype
        scores = simpler.hidden if call.linear else simpler.logits
        assert simpler.target.shape[0] == scores.shape[0]
