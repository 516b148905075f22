"""A kernel with gates is judged, not its fall-back; one without chunks is asked all that chunks do not change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unixent_conformance import case, run
from unixent_conformance.cases import catalogue
from unixent_conformance.fitting import fitted, widened
from unixent_conformance.harnesses import load
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Call, Tier
from unixent_conformance.results import Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.under_test import Subject
from unixent_mutants.linear import plain_linear
from unixent_mutants.plain import plain

SIZES = {"positions": 8, "hidden": 16, "classes": 8}
FEATURES = ["class indices", "class probabilities", "mask", "ignore_index", "num_classes", "minus infinity", "softcap"]
LINEAR = ["fused linear", "fused linear special values", "fused linear padding"]


def sizes(call: Call) -> tuple[int, ...]:
    if call.linear:
        return int(np.prod(call.hidden.shape[:-1])), *call.classifier.shape
    classes = call.logits.shape[call.options.get("axis", -1)]
    return call.logits.size // classes, classes, 0


def gated(function: Any, seen: list[bool]) -> Any:
    """A kernel for whole blocks, and a fall-back; it says which was taken."""

    def either(*given: Any, **options: Any) -> Any:
        linear = len(given) == 3
        classes = len(given[1]) if linear else given[0].shape[options.get("axis", -1)]
        rows = given[0].size // given[0].shape[-1] if linear else given[0].size // classes
        seen.append(classes % 8 == 0 and rows % 8 == 0 and (not linear or given[0].shape[-1] % 16 == 0))
        return function(*given, **options)

    return either


@pytest.mark.parametrize("linear", [False, True], ids=["logits", "linear"])
def test_wider_cases_run_the_kernel_and_a_right_one_matches(linear: bool) -> None:
    seen: list[bool] = []
    of = plain_linear if linear else plain
    both = gated(of.linear_value_and_grad if linear else of.value_and_grad, seen)
    given = {"linear": gated(of.linear, seen), "linear_value_and_grad": both} if linear else {"value_and_grad": both}
    kernel = replace(of, multiples=SIZES, **given)
    report = run(kernel, features=LINEAR if linear else FEATURES, quick=True, strict=True)
    assert not report.failures, [(r.id, r.detail) for r in report.failures][:3]
    assert report.counts[Verdict.REFUSES] == 0
    assert sum(seen) > 0.9 * len(seen), (sum(seen), len(seen))


def test_without_multiples_no_linear_case_runs_a_kernel_of_blocks() -> None:
    calls = [c.build() for c in catalogue(Tier.QUICK, features=LINEAR) if c.raises is None]
    assert not [call for call in calls if sizes(call)[1] % 8 == 0 and sizes(call)[2] % 128 == 0]
    wide = [widened(call, {"classes": 8, "hidden": 128}) for call in calls]
    assert sum(sizes(call)[1] % 8 == 0 and sizes(call)[2] % 128 == 0 for call in wide) > 0.9 * len(wide)


@pytest.mark.parametrize("id", ["mask/bool/float32-mean/gradient", "softcap/hard/float32-sum/value"])
def test_a_fault_of_the_kernel_alone_shows_in_wider_cases_alone(id: str) -> None:
    def loss(logits: Any, target: Any, **options: Any) -> Any:
        return plain.loss(logits * logits.dtype.type(1.5 if logits.shape[-1] % 8 == 0 else 1), target, **options)

    def both(logits: Any, target: Any, **options: Any) -> Any:
        assert plain.value_and_grad is not None
        return plain.value_and_grad(
            logits * logits.dtype.type(1.5 if logits.shape[-1] % 8 == 0 else 1), target, **options
        )

    kernel = replace(plain, loss=loss, value_and_grad=both)
    assert run_case(case(id), Subject(load("numpy"), kernel)).verdict is Verdict.MATCHES
    assert (
        run_case(case(id), Subject(load("numpy"), replace(kernel, multiples={"classes": 8}))).verdict is Verdict.WRONG
    )


def test_an_input_that_fits_is_left_as_it_is() -> None:
    call = widened(
        case(
            "fused-linear/weights,-ignored/float32/5/value".replace("fused-linear/", "fused-linear-chunks/").replace(
                ",", ""
            )
        ).build(),
        SIZES,
    )
    again = widened(call, SIZES)
    assert all(again.arrays()[name] is array for name, array in call.arrays().items())


@pytest.mark.parametrize("multiples", [{"rows": 8}, {"classes": 0}, {"hidden": 8.0}])
def test_multiples_that_mean_nothing_are_an_error(multiples: Any) -> None:
    with pytest.raises(ValueError, match="multiples: expected sizes"):
        Implementation("mine", plain.loss, multiples=multiples)


def test_without_chunks_what_they_do_not_change_is_asked_once() -> None:
    options = frozenset({"hidden", "classifier", "target", "bias", "weight", "mask", "reduction", "ignore_index"})
    options |= {
        "scale",
        "temperature",
        "label_smoothing",
        "z_loss",
        "softcap",
        "dtype",
        "normalizer",
        "on_empty",
        "validate",
        "num_classes",
    }
    kernel = replace(plain_linear, options=options, linear_value_and_grad=plain_linear.linear_value_and_grad)
    features = ["fused linear chunks", "fused linear special values", "fused linear bad input"]
    report = run(kernel, features=features, quick=True, strict=True)
    assert not report.failures, [(r.id, r.detail) for r in report.failures][:3]
    refused = [r for r in report.cases if r.verdict is Verdict.REFUSES]
    assert {r.id.split("/")[1] for r in refused} == {"chunk-0", "negative-chunk", "chunk-that-is-no-int", "chunk-True"}
    full = [c for c in catalogue(features=["fused linear chunks"]) if "chunk" in fitted(c, kernel).build().options]
    assert {c.build().options["chunk"] for c in full} == {1, 22, 23, 1000}


def test_the_logits_of_a_linear_kernel_are_as_wide_as_it_takes() -> None:
    seen: list[bool] = []
    both = gated(plain_linear.linear_value_and_grad, seen)
    kernel = replace(plain_linear, linear=gated(plain_linear.linear, seen), linear_value_and_grad=both, multiples=SIZES)
    report = run(kernel, features=["class indices", "minus infinity"], quick=True, linear=True)
    assert not report.failures, [(r.id, r.detail) for r in report.failures][:3]
    assert sum(seen) > 0.5 * len(seen)


def test_a_case_of_many_options_is_asked_with_those_that_there_are() -> None:
    asked = []

    def loss(logits: Any, target: Any, **options: Any) -> Any:
        asked.append(options)
        return plain.loss(logits, target, **options)

    def value_and_grad(
        logits: Any, target: Any, *, grad_output: Any = None, wrt: Any = "logits", **options: Any
    ) -> Any:
        asked.append(options)
        return plain.value_and_grad(logits, target, grad_output=grad_output, wrt=wrt, **options)  # type: ignore[misc]

    few = frozenset({"logits", "target", "reduction", "ignore_index", "label_smoothing"})
    report = run(Implementation("few", loss, value_and_grad=value_and_grad, options=few), features=["combinations"])
    assert report.ok, [(r.id, r.detail) for r in report.failures][:3]
    refused = [r.id for r in report.cases if r.verdict is Verdict.REFUSES]
    assert all("-alone/" in id for id in refused), refused  # of two options by themselves
    assert set().union(*asked) == few - {"logits", "target"}
    assert any(options.get("label_smoothing") and options.get("ignore_index", -100) >= 0 for options in asked)
