"""The conformance catalogue through the Triton programs."""

from __future__ import annotations

import pytest

from unixent_conformance.api import subject
from unixent_conformance.cases import catalogue
from unixent_conformance.model import Tier
from unixent_conformance.runner import run_case
from unixent_conformance.selection import select


def count_of_matching(tier: Tier, mode: str = "eager", step: int = 1) -> int:
    """How many of every step-th case of a tier a mode asks; all match."""
    under_test = subject("torch", mode=mode)
    answered = [case for case in catalogue(tier) if under_test.implementation.answers(case)]
    pairs = list(select(answered, [under_test.mode]))[::step]
    for case, _ in pairs:
        result = run_case(case, under_test)
        assert result.verdict.ok, (result.id, result.detail)
    return len(pairs)


@pytest.mark.parametrize("mode", ["eager", "autograd"])
def test_one_question_of_each_quick_input_matches(mode: str, passes: list[str]) -> None:
    assert count_of_matching(Tier.SAMPLED, mode) > 300
    assert passes.count("row_statistics") > 200
    assert passes.count("row_gradients") > 200


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", ["eager", "autograd"])
def test_all_quick_cases_match(mode: str) -> None:
    assert count_of_matching(Tier.QUICK, mode) > 500


def test_some_cases_match_with_many_tiles_a_row(passes: list[str], tiny_tiles: None) -> None:
    # A program takes the interpreter a millisecond, and rows have up to thousands of tiles of 16 classes.
    assert count_of_matching(Tier.SAMPLED, step=23) > 40
    assert {"row_statistics", "row_gradients"} == set(passes)


@pytest.mark.exhaustive
def test_all_quick_cases_match_with_many_tiles_a_row(tiny_tiles: None) -> None:
    assert count_of_matching(Tier.QUICK) > 1000
