"""A convention is named where its formula gives the answer, and nowhere else."""

from __future__ import annotations

import pytest

from unixent_conformance import run
from unixent_conformance.dialects import BY_NAME
from unixent_conformance.results import Verdict


@pytest.mark.parametrize(
    ("name", "feature", "dialect"),
    [
        ("over_positions", "class weights", "mean over all positions"),
        ("others_smoothed", "label smoothing", "smoothing over the other classes"),
        ("clamped", "out-of-range targets", "index out of range: clamped"),
        ("wide", "class indices", "result in float64"),
        ("summed", "minus infinity", "0·∞ is NaN"),
        ("linear_summed", "fused linear special values", "0·∞ at the target is NaN"),
    ],
)
def test_a_convention_is_named(name: str, feature: str, dialect: str) -> None:
    linear = name.startswith("linear")
    report = run(f"subjects:{name}", "numpy", features=[feature], quick=name == "wide", linear=linear, isolate=False)
    assert report.counts[Verdict.WRONG] == 0, [r.detail for r in report.cases if r.verdict is Verdict.WRONG]
    assert dialect in report.dialects
    assert report.counts[Verdict.CRASHED] == 0
    assert all(r.detail for r in report.cases if r.verdict is Verdict.DIALECT)


def test_a_convention_is_wrong_under_strict() -> None:
    report = run("subjects:over_positions", "numpy", features=["class weights"], strict=True, isolate=False)
    assert report.counts[Verdict.DIALECT] == 0
    assert report.counts[Verdict.WRONG] > 0


def test_an_answer_that_no_formula_gives_stays_wrong() -> None:
    report = run("subjects:off_by_a_thousandth", "numpy", features=["class weights"], quick=True, isolate=False)
    assert report.counts[Verdict.WRONG] > 0
    assert report.counts[Verdict.DIALECT] == 0


def test_backends_of_unixent_have_no_dialects() -> None:
    report = run("numpy", features=["class weights", "empty mean"], quick=True)
    assert report.ok
    assert report.counts[Verdict.DIALECT] == 0


def test_correct_results_are_in_no_dialect() -> None:
    report = run("subjects:right", "numpy", features=["class indices"], quick=True, isolate=False)
    assert report.dialects == {}


def test_every_dialect_says_what_it_is() -> None:
    for dialect in BY_NAME.values():
        assert dialect.formula
        assert dialect.advice.endswith(".")
