"""The conformance catalogue through the Triton programs."""

from __future__ import annotations

import pytest

import unixent_conformance
from unixent_conformance.api import find_tested, subject
from unixent_conformance.cases import catalogue
from unixent_conformance.runner import run_case
from unixent_conformance.selection import Choice


@pytest.mark.parametrize("mode", ["eager", "autograd"])
def test_the_quick_cases_match(mode: str, passes: list[str]) -> None:
    report = unixent_conformance.run("torch", quick=True, modes=[mode])
    assert report.ok, [(case.id, case.detail) for case in report.failures]
    assert len(report.cases) > 500
    assert passes.count("row_statistics") > 1000
    assert passes.count("row_gradients") > 1000


def tiny_tiles_match(step: int) -> int:
    """How many of every step-th quick case are asked with many tiles a row; all match."""
    implementation, harness = find_tested("torch")
    cases = [case for case in catalogue() if implementation.answers(case)]
    modes = [mode for mode in harness.modes if mode.name == "eager"]
    pairs = Choice(quick=True).of(cases, modes)[::step]
    for case, _ in pairs:
        result = run_case(case, subject("torch"))
        assert result.verdict.ok, (result.id, result.detail)
    return len(pairs)


def test_some_quick_cases_match_with_many_tiles_a_row(passes: list[str], tiny_tiles: None) -> None:
    # A program takes the interpreter a millisecond, and rows have up to thousands of tiles of 16 classes.
    assert tiny_tiles_match(step=23) > 50
    assert {"row_statistics", "row_gradients"} == set(passes)


@pytest.mark.exhaustive
def test_all_quick_cases_match_with_many_tiles_a_row(tiny_tiles: None) -> None:
    assert tiny_tiles_match(step=1) > 1000
