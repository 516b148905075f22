"""What is refused, what is an error that was due, what crashed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import unixent
from unixent_conformance import case, run
from unixent_conformance.implementation import Implementation, wrap
from unixent_mutants.judging import judge, raising
from unixent_mutants.plain import plain


def test_undeclared_refusal_is_a_crash_and_a_declared_one_is_not() -> None:
    refusing = replace(plain, loss=raising(TypeError))
    id = "class-indices/plain/float16-mean/value"
    assert judge(refusing, id).verdict.value == "crashed"
    declared = replace(refusing, capabilities=frozenset({"dtype:float32", "target:index"}))
    assert judge(declared, id).verdict.value == "refuses"
    assert judge(declared, id.replace("16", "32")).verdict.value == "crashed"


def test_unixents_own_backends_refuse_with_their_own_errors() -> None:
    id = "class-indices/plain/float16-mean/value"
    own = Implementation("own", raising(RuntimeError), capabilities=frozenset({"target:index"}), own_errors=True)
    assert judge(own, id).verdict.value == "crashed"
    assert judge(replace(own, loss=raising(unixent.BackendError)), id).verdict.value == "refuses"


def test_what_is_declared_away_is_not_judged_but_of_unixents_own_backends() -> None:
    def zero(logits: Any, target: Any, **options: Any) -> Any:
        return np.zeros((), logits.dtype)

    id, own = "class-indices/plain/float16-mean/value", Implementation("zero", zero, own_errors=True)
    stranger = replace(own, own_errors=False)
    for declared, verdict in (
        (frozenset({"dtype:float16", "target:index"}), "silently wrong"),
        (None, "silently wrong"),
    ):
        assert judge(replace(stranger, capabilities=declared), id).verdict.value == verdict
    for declared, lacking in (
        (frozenset({"dtype:float16"}), "target:index"),
        (frozenset({"target:index"}), "dtype:float16"),
    ):
        result = judge(replace(stranger, capabilities=declared), id)
        assert (result.verdict.value, result.detail) == ("refuses", f"declared without {lacking}")
    result = judge(replace(own, capabilities=frozenset()), id)
    assert result.verdict.value == "silently wrong"
    assert result.units > 100


@pytest.mark.parametrize(
    ("error", "text", "verdict"),
    [
        (unixent.ShapeError, "target: no", "matches"),
        (unixent.ShapeError, "no", "crashed"),
        (unixent.OptionError, "target: no", "crashed"),
        (ValueError, "target: no", "crashed"),
    ],
)
def test_errors_are_judged_by_class_and_by_the_argument_they_name(
    error: type[Exception], text: str, verdict: str
) -> None:
    own = Implementation("own", raising(error, text), own_errors=True)
    assert judge(own, "bad-input/target-of-another-shape/value").verdict.value == verdict


def test_any_error_does_for_a_stranger() -> None:
    result = judge(Implementation("stranger", raising(KeyError)), "bad-input/target-of-another-shape/value")
    assert result.verdict.value == "matches"


def test_options_outside_the_signature_are_refused_without_a_call() -> None:
    def loss(logits: Any, target: Any, reduction: str = "mean") -> Any:
        return plain.loss(logits, target, reduction=reduction)

    result = wrap(loss)
    assert judge(result, "mask/bool/float32-sum/value").detail == "has no option mask"
    assert judge(result, "class-indices/plain/float32-sum/value").verdict.value == "matches"
    assert judge(result, "class-indices/plain/float32-sum/gradient").detail == "numpy has no automatic differentiation"


class Unavailable(Exception):
    """An error of a compiler, say, which stands in the way of the one that was raised."""


def test_a_refusal_that_something_else_wraps_is_one() -> None:
    def loss(*args: Any, **options: Any) -> Any:
        try:
            raise NotImplementedError("no")
        except NotImplementedError as error:
            raise Unavailable("a graph") from error

    assert judge(wrap(loss), "class-indices/plain/float32-sum/value").verdict.value == "refuses"
    assert judge(wrap(raising(Unavailable)), "class-indices/plain/float32-sum/value").verdict.value == "crashed"


@pytest.mark.parametrize("id", ["class-indices/plain/float64-sum/value", "class-indices/plain/float16-none/value"])
def test_a_scalar_of_numpy_is_a_result_and_its_dtype_counts(id: str) -> None:
    def scalar(logits: Any, target: Any, **options: Any) -> Any:
        return np.asarray(plain.loss(logits, target, **options))[()]

    assert judge(wrap(scalar), id).verdict.value == "matches"
    wide = judge(
        wrap(lambda *given, **options: np.float32(scalar(*given, **options))), "class-indices/plain/float64-sum/value"
    )
    assert wide.detail == "loss: dtype float32, expected float64"


@pytest.mark.parametrize(
    ("id", "declared"),
    [
        ("normalizer/array/float64-mean/value", "dtype:mixed"),
        ("result-dtype/float32-to-float64/sum/gradient", "dtype:mixed"),
        ("fused-linear/wider-classifier/mean/value", "dtype:mixed"),
        ("target-dtypes/uint64/plain/mean/value", "target:uint64"),
        ("target-dtypes/int32/plain/mean/value", "target:int32"),
    ],
)
def test_a_loud_error_about_dtypes_that_nobody_promised_is_a_refusal(id: str, declared: str) -> None:
    wrong = raising(RuntimeError, "expected one dtype")
    loss = Implementation("loud", wrong, value_and_grad=wrong, linear=wrong, linear_value_and_grad=wrong)
    assert judge(loss, id).verdict.value == "refuses"
    needs = case(id).needs
    assert declared in needs
    assert judge(replace(loss, capabilities=needs), id).verdict.value == "crashed"
    assert judge(replace(loss, capabilities=needs - {declared}), id).verdict.value == "refuses"


def test_every_refusal_of_a_small_implementation_is_named() -> None:
    def loss(logits: Any, target: Any) -> Any:
        return plain.loss(logits, target)

    report = run(loss, "numpy", quick=True)
    assert report.ok
    assert report.counts[report.cases[0].verdict] > 0
    assert all(r.detail for r in report.cases if r.verdict.value == "refuses")


def test_answers_that_should_be_one_are_named_by_what_was_asked() -> None:
    def value_and_grad(logits: Any, target: Any, **options: Any) -> Any:
        loss, grad = unixent.value_and_grad(logits, target, **options)
        return loss * (1.001 if target.dtype.kind == "f" else 1), grad

    result = judge(replace(plain, value_and_grad=value_and_grad), "invariances/one-hot/plain/float32")
    assert result.verdict.value == "silently wrong"
    for words in ("loss at", " of class indices and ", " of their one-hot rows, more than ", "times the bound"):
        assert words in result.detail


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (None, "the result of value_and_grad is of type NoneType, not a tuple of 2"),
        ((1.0, 2.0, 3.0), "the result of value_and_grad is a tuple of 3, not of 2"),
        ((1.0, 2.0), "the result is of type float, not an array of numpy"),
        ((np.float32(1), None), "the result is of type NoneType, not an array of numpy"),
    ],
)
def test_a_value_and_a_gradient_are_two_arrays(answer: Any, detail: str) -> None:
    loss = replace(plain, value_and_grad=lambda *given, **options: answer)
    result = judge(loss, "class-indices/plain/float32-mean/gradient")
    assert (result.verdict.value, result.detail) == ("silently wrong", detail)


def test_a_gradient_of_each_argument_is_due() -> None:
    def one_for_two(*given: Any, **options: Any) -> Any:
        loss, gradients = unixent.linear_value_and_grad(*given, **options)
        return loss, gradients[0]

    loss = Implementation("one", plain.loss, linear=unixent.linear_cross_entropy, linear_value_and_grad=one_for_two)
    result = judge(loss, "fused-linear/class-indices/plain/float32-none/gradients")
    assert result.detail == "its gradient is of type numpy.ndarray, not a tuple of 2"


def test_terms_and_statistics_are_several_arrays() -> None:
    lost = replace(plain, terms=lambda *given, **options: None, position_stats=lambda *given, **options: None)
    result = judge(lost, "mask/bool/float32-terms")
    assert result.detail == "the result of loss_terms is of type NoneType, not a tuple of 2"
    result = judge(lost, "statistics/log_prob-plain/float32/value")
    assert result.detail == "the result of position_stats is of type NoneType, not a tuple of 13"


def test_no_result_is_no_error_where_one_is_due() -> None:
    result = judge(Implementation("mute", lambda *given, **options: None), "bad-input/target-of-another-shape/value")
    assert (result.verdict.value, result.detail) == (
        "silently wrong",
        "the result is of type NoneType, not an array of numpy",
    )


@pytest.mark.parametrize("id", ["class-indices/plain/float32-mean/value", "bad-input/target-of-another-shape/value"])
def test_an_exit_is_a_crash_where_an_error_is_due_too(id: str) -> None:
    def loss(*given: Any, **options: Any) -> Any:
        raise SystemExit(3)

    result = judge(Implementation("exits", loss), id)
    assert (result.verdict.value, result.detail) == (
        "crashed",
        "SystemExit: 3, raised by the implementation, ends its caller",
    )
