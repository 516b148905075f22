"""Implementations are compared with each other: right ones agree, a wrong one does not, exact results are equal."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import unixent
from unixent_conformance import compare
from unixent_conformance.agreement import between
from unixent_conformance.cases import catalogue
from unixent_conformance.cli import runs
from unixent_conformance.expected import Part
from unixent_conformance.implementation import of_backend
from unixent_conformance.model import Tier
from unixent_conformance.report import agreements
from unixent_conformance.results import Agreement
from unixent_conformance.tolerance import Estimate
from unixent_mutants import mutants
from unixent_mutants.plain import plain

DIFFERENTIATED = ("second derivatives", "gradients of two passes")
INFINITY, NAN = float("inf"), float("nan")


def mutant(name: str) -> str:
    return f"unixent_mutants:{name}"


@pytest.fixture(scope="module")
def right() -> Agreement:
    return compare(["numpy", plain], quick=True)


def test_two_right_implementations_agree(right: Agreement) -> None:
    assert right.ok, right.disagreements[:3]
    (pair,) = right.pairs
    compared = {difference.id for difference in right.of(pair)}
    # Two derivatives are asked of a framework, and NumPy has none; a plain loss has no fused form, no statistics and no
    # sparse targets.
    due = [case for case in catalogue(Tier.QUICK) if case.quantity not in DIFFERENTIATED]
    assert {case.id for case in due if not {"linear", "position_stats", "target:sparse"} & case.needs} == compared
    assert 0 < max(difference.units for difference in right.differences) < 1


@pytest.mark.parametrize("name", ["MaskAsBool", "SmoothingOverTheOthers", "FlushesToZero"])
def test_a_wrong_implementation_disagrees(name: str) -> None:
    features = mutants()[name].features
    agreement = compare(["numpy", mutant(name)], features=features)
    assert not agreement.ok
    assert {difference.feature for difference in agreement.disagreements} <= set(features)
    assert "bounds from the truth" in agreement.disagreements[0].detail


def test_of_three_the_wrong_one_is_in_every_pair_that_disagrees() -> None:
    agreement = compare(["numpy", plain, mutant("MaskAsBool")], features=["mask"], quick=True)
    assert {difference.pair for difference in agreement.disagreements} == {
        ("numpy", agreement.names[2]),
        (agreement.names[1], agreement.names[2]),
    }


def value(truth: float, bound: float = 0.0, dtype: str = "float32") -> Part:
    return Part("loss", Estimate(np.asarray(truth, np.longdouble), np.asarray(bound, np.longdouble)), dtype)


@pytest.mark.parametrize(
    ("one", "other", "part", "units"),
    [
        (1.0, 1.0, value(1), 0),
        (1.5, 0.5, value(1, 1), 0.5),
        (3.0, -1.0, value(1, 1), 2),
        (NAN, NAN, value(NAN), 0),
        (NAN, 1.0, value(NAN), INFINITY),
        (NAN, 1.0, value(1, 1), INFINITY),
        (INFINITY, INFINITY, value(INFINITY), 0),
        (INFINITY, -INFINITY, value(INFINITY), INFINITY),
        (INFINITY, 1.0, value(1, 1), INFINITY),
        (0.0, -0.0, value(0), 0),
        (0.0, 1e-45, value(0), INFINITY),  # exactly zero
        (0.0, 1e-40, value(0, 1e-40), 0.5),
        (INFINITY, 65504.0, value(65519.9, 1.0, "float16"), 0.97),  # which of the two a rounding makes is anyone's
        (INFINITY, 65504.0, value(65000.0, 1.0, "float16"), INFINITY),
    ],
)
def test_a_difference_is_counted_in_units_of_both_bounds(one: float, other: float, part: Part, units: float) -> None:
    for first, second in ((one, other), (other, one)):
        pair = (np.asarray(item, part.dtype) for item in (first, second))
        agreement = between(*pair, part).units
        assert agreement == pytest.approx(units, rel=0.01, abs=0)


@pytest.mark.parametrize("other", [np.zeros(1, np.float32), np.zeros((), np.float64)])
def test_shape_and_dtype_are_held_to(other: np.ndarray) -> None:
    assert between(np.zeros((), np.float32), other, value(0, 1)).units == INFINITY


def reworded(logits, target, **options):
    try:
        return unixent.cross_entropy(logits, target, **options)
    except unixent.UnixentError as error:
        raise type(error)(f"Sorry: {error}") from error


def test_the_text_of_an_error_is_held_to() -> None:
    apart = replace(of_backend("numpy"), name="reworded", loss=reworded)
    agreement = compare(["numpy", apart], features=["bad input"], quick=True)
    assert agreement.disagreements
    assert all("Sorry: " in difference.detail for difference in agreement.disagreements)


def test_a_declared_lack_is_not_compared() -> None:
    numpy = of_backend("numpy")
    halves = frozenset({"dtype:float16", "dtype:bfloat16"})
    declared = replace(numpy, name="no halves", capabilities=numpy.capabilities - halves)
    functions = {name: refusing(getattr(numpy, name)) for name in ("loss", "value_and_grad")}
    declared = replace(declared, **functions)
    agreement = compare(["numpy", declared], features=["class indices"], quick=True)
    assert agreement.ok
    ids = {difference.id for difference in agreement.differences}
    assert ids
    assert not any("float16" in id for id in ids)


def refusing(function):
    def call(logits, target, **options):
        if logits.dtype.itemsize == 2:
            raise unixent.DTypeError("logits: expected float32")
        return function(logits, target, **options)

    return call


@pytest.mark.parametrize("names", [[], ["numpy"], ["numpy", "numpy"]])
def test_one_alone_is_not_compared(names: list[str]) -> None:
    with pytest.raises(ValueError, match="expected two or more different implementations"):
        compare(names)


def test_reports_say_the_same(right: Agreement) -> None:
    data = json.loads(right.to_json())
    assert data["ok"] is True
    assert data["implementations"] == list(right.names)
    (pair,) = right.pairs
    worst = right.largest(pair)
    assert worst is not None
    assert max(record["units"] for record in data["largest"]) == worst.units
    text = agreements.to_markdown(right)
    assert all(f"| {feature} |" in text for feature in right.features)
    assert f"`{worst.id}`" in text


def test_the_command_says_who_disagrees(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    options = {"features": ["mask"], "quick": True, "out": tmp_path / "out"}
    assert runs.compare(["numpy", mutant("MaskAsBool")], **options) == 1
    said = capsys.readouterr().out
    assert "disagree mask/" in said
    assert json.loads((tmp_path / "out" / "agreement.json").read_text("utf-8"))["disagreements"]
    assert runs.compare(["numpy"], **options) == 2
