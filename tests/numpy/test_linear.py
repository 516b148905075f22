"""The fused linear form against the unfused one: every option, any chunk, half precision, memory."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import unixent

RNG = np.random.default_rng(3)
N, D, C = 23, 6, 11
HIDDEN, CLASSIFIER, BIAS = RNG.normal(size=(N, D)), RNG.normal(size=(C, D)), RNG.normal(size=C)
INDEX = RNG.integers(C, size=N)
INDEX[[2, 9]] = -100
PROBABILITIES = RNG.random((N, C))
MASK = RNG.random(N) * (RNG.random(N) > 0.3)
OPTIONS = [
    {},
    {"weight": RNG.random(C)},
    {"mask": MASK, "normalizer": 7.0},
    {"label_smoothing": 0.2, "weight": RNG.random(C), "reduction": "sum"},
    {"z_loss": 0.1, "softcap": 2.0, "mask": MASK},
    {"reduction": "none", "grad_output": RNG.normal(size=N), "label_smoothing": 0.1},
    {"mask": np.zeros(N)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["index", "probability"])
@pytest.mark.parametrize("chunk", [None, 1, 5, N, 1000])
def test_equals_the_unfused_form(options, target, chunk):
    logits = HIDDEN @ CLASSIFIER.T + BIAS
    wrt = ("hidden", "classifier", "bias") + (("target",) if target is PROBABILITIES else ())
    loss, grads = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, target, bias=BIAS, chunk=chunk, wrt=wrt, **options)
    names = ("logits", "target") if target is PROBABILITIES else ("logits",)
    expected, (grad, *rest) = unixent.value_and_grad(logits, target, wrt=names, **options)
    close = {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(loss, expected, **close)
    np.testing.assert_allclose(grads[0], grad @ CLASSIFIER, **close)
    np.testing.assert_allclose(grads[1], grad.T @ HIDDEN, **close)
    np.testing.assert_allclose(grads[2], grad.sum(axis=0), **close)
    for mine, other in zip(grads[3:], rest, strict=True):
        np.testing.assert_allclose(mine, other, **close)
    options = {name: value for name, value in options.items() if name != "grad_output"}
    alone = unixent.linear_cross_entropy(HIDDEN, CLASSIFIER, target, bias=BIAS, chunk=chunk, **options)
    np.testing.assert_array_equal(alone, loss)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3, 4)])
def test_any_shape_of_positions(shape):
    hidden, target = RNG.normal(size=(*shape, D)), RNG.integers(C, size=shape)
    loss, (grad, _) = unixent.linear_value_and_grad(hidden, CLASSIFIER, target, reduction="none")
    assert loss.shape == shape
    assert grad.shape == hidden.shape
    np.testing.assert_allclose(loss, unixent.cross_entropy(hidden @ CLASSIFIER.T, target, reduction="none"), rtol=1e-12)


def test_nothing_comes_from_a_position_that_is_switched_off():
    hidden = HIDDEN.copy()
    hidden[2] = np.nan
    hidden[9] = np.inf
    loss, grads = unixent.linear_value_and_grad(hidden, CLASSIFIER, INDEX, bias=BIAS)
    expected, expected_grads = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, INDEX, bias=BIAS)
    assert loss == expected
    for grad, other in zip(grads, expected_grads, strict=True):
        np.testing.assert_array_equal(grad, other)


def test_a_bias_of_minus_infinity_switches_a_class_off():
    bias = BIAS.copy()
    bias[4] = -np.inf
    target = np.where(INDEX == 4, 5, INDEX)
    loss, (_, classifier, grad) = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, target, bias=bias)
    assert np.isfinite(loss)
    assert (classifier[4] == 0).all()
    assert grad[4] == 0


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_half_inputs_are_accumulated_in_float32(dtype):
    hidden, classifier, bias = HIDDEN.astype(dtype), CLASSIFIER.astype(dtype), BIAS.astype(dtype)
    wide = [array.astype(np.float64) for array in (hidden, classifier, bias)]
    loss, grads = unixent.linear_value_and_grad(hidden, classifier, INDEX, bias=bias, dtype="float32", chunk=3)
    expected, expected_grads = unixent.linear_value_and_grad(wide[0], wide[1], INDEX, bias=wide[2])
    assert abs(loss / expected - 1) < 1e-6
    unit = np.finfo(dtype).eps / 2
    for grad, other, like in zip(grads, expected_grads, (hidden, classifier, bias), strict=True):
        assert grad.dtype == like.dtype
        # One rounding to the result's dtype, and float32 sums of 23 terms before it.
        np.testing.assert_allclose(grad.astype(np.float64), other, rtol=unit, atol=3e-6)


def error(got, truth):
    return float(np.sqrt(np.square(np.asarray(got).astype(np.float64) - truth).sum()))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("options", OPTIONS[:6], ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_half_precision_is_no_worse_than_the_unfused_form(dtype, options, scale):
    """Beside the exact ones: our value and gradients, and those of logits rounded to half precision on their way."""
    hidden, classifier, bias = (
        (array * by).astype(dtype) for array, by in ((HIDDEN, scale), (CLASSIFIER, 1), (BIAS, 1))
    )
    wide = [array.astype(np.float64) for array in (hidden, classifier, bias)]
    ours = unixent.linear_value_and_grad(hidden, classifier, INDEX, bias=bias, chunk=5, **options)
    exact = unixent.linear_value_and_grad(*wide[:2], INDEX, bias=wide[2], **options)
    logits = (wide[0] @ wide[1].T + wide[2]).astype(dtype)
    loss, grad = unixent.value_and_grad(logits, INDEX, **options)
    slopes = grad.astype(np.float64)
    unfused = loss, [product.astype(dtype) for product in (slopes @ wide[1], slopes.T @ wide[0], slopes.sum(axis=0))]
    for name, own, other, truth in zip(
        ("loss", "hidden", "classifier", "bias"),
        (ours[0], *ours[1]),
        (unfused[0], *unfused[1]),
        (exact[0], *exact[1]),
        strict=True,
    ):
        # The one rounding that a result in half precision cannot be without, where both are down to that.
        least = error(np.asarray(truth).astype(dtype), truth)
        assert error(own, truth) <= max(error(other, truth), 1.01 * least), name


def test_the_logits_never_exist():
    positions, width, classes = 2048, 32, 8000
    hidden = RNG.normal(size=(positions, width)).astype(np.float32)
    classifier = RNG.normal(size=(classes, width)).astype(np.float32)
    target = RNG.integers(classes, size=positions)
    logits = positions * classes * 4
    tracemalloc.start()
    try:
        unixent.linear_value_and_grad(hidden, classifier, target, chunk=128)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= logits * 128 / positions + 4 * hidden.nbytes + 4 * classifier.nbytes + (6 << 20)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"classifier": CLASSIFIER[:, :4]}, unixent.ShapeError, r"classifier: expected shape \(C, 6\)"),
        ({"classifier": CLASSIFIER[0]}, unixent.ShapeError, "classifier: "),
        ({"bias": BIAS[:3]}, unixent.ShapeError, r"bias: expected a floating array of shape \(11,\)"),
        ({"hidden": HIDDEN.astype(int)}, unixent.DTypeError, "hidden: "),
        ({"chunk": 0}, unixent.OptionError, "chunk: expected None or an int >= 1; got 0"),
        ({"target": INDEX + 9}, unixent.TargetRangeError, "target: "),
        ({"wrt": "bias"}, unixent.OptionError, "wrt: "),
        ({"wrt": "target"}, unixent.OptionError, "wrt: .* class indices have no gradient"),
    ],
)
def test_errors_name_the_argument(change, error, text):
    arguments = {"hidden": HIDDEN, "classifier": CLASSIFIER, "target": INDEX, **change}
    with pytest.raises(error, match=text):
        unixent.linear_value_and_grad(**arguments)
