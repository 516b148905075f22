"""The kernel composed of primitives, which accelerators use, compared with the NumPy backend on CPU."""

from __future__ import annotations

import itertools

import mindspore as ms
import numpy as np
import pytest

import unixent
from unixent import LossOptions, validation
from unixent.arguments import CommonArguments
from unixent_mindspore import backend
from unixent_mindspore.kernel import ABSENT
from unixent_mindspore.logits.problem import operands
from unixent_mindspore.loss_cell import composed_cell

RNG = np.random.default_rng(5)
LOGITS = np.moveaxis(4 * RNG.normal(size=(3, 4, 6)), 2, 1)
LOGITS[0, :, 0] = [0, -np.inf, 1, 2, 3, 4]
LOGITS[1, 2, 1] = np.inf
LOGITS[1, :, 2] = -np.inf
LOGITS[2, :, 0] = [90, 0, 0, 0, 0, 0]
LOGITS[2, 1, 3] = np.nan
INDEX = RNG.integers(6, size=(3, 4)).astype(np.uint8)
INDEX[2, 0], INDEX[2, 3], INDEX[0, 2], INDEX[0, 0] = 0, 5, 9, 0
PROBABILITY = np.moveaxis(RNG.dirichlet(np.ones(6), size=(3, 4)), 2, 1)
WEIGHT = np.array([1, 0, 0.5, 2, 1, 1])
MASK = np.array([[1, 2, 1, 0.5], [1, 1, 1, 1], [1, 1, 0, 0]])
OPTIONS = [
    {"axis": 1, "ignore_index": 5},
    {"axis": 1, "ignore_index": 5, "label_smoothing": 0.2, "z_loss": 0.1},
    {"axis": 1, "softcap": 4.0, "ignore_index": 300},
]


def cases():
    for options, reduction, weighted in itertools.product(OPTIONS, ("none", "sum", "mean"), (False, True)):
        yield INDEX, {**options, "reduction": reduction}, weighted
        yield PROBABILITY, {**options, "reduction": reduction, "ignore_index": -100}, weighted


@pytest.mark.parametrize(("target", "options", "weighted"), cases(), ids=str)
def test_loss_and_gradient_equal_the_numpy_backend(target, options, weighted):
    weight, mask = (WEIGHT, MASK) if weighted else (None, None)
    arrays = [None if item is None else ms.Tensor(item) for item in (LOGITS, target, weight, mask)]
    given = CommonArguments(arrays[1], arrays[2], arrays[3])
    problem = validation.logits_call(backend, arrays[0], given, LossOptions(**options, validate="off")).problem
    inputs, spec = operands(problem, on_host=True)
    cell = composed_cell(spec, "float64")

    wrt = ("logits", "target") if target is PROBABILITY else ("logits",)
    expected, grads = unixent.value_and_grad(
        LOGITS, target, weight=weight, mask=mask, wrt=wrt, validate="off", **options
    )
    np.testing.assert_allclose(cell(*inputs).asnumpy(), expected, rtol=1e-12, atol=0)
    computed = cell.gradient(*inputs, ms.mint.ones(expected.shape, dtype=ms.float64), ABSENT)
    for name, grad in zip(wrt, grads, strict=True):
        got = computed[{"logits": 0, "target": 3}[name]].asnumpy()
        np.testing.assert_allclose(got, grad, rtol=1e-11, atol=1e-300)


def composed_loss(logits, target, dtype, **options):
    """The loss in primitives, as on an accelerator, and the gradient of its logits."""
    normalizer = options.pop("normalizer", None)
    given = CommonArguments(ms.Tensor(target), normalizer=normalizer)
    problem = validation.logits_call(backend, ms.Tensor(logits), given, LossOptions(**options)).problem
    inputs, spec = operands(problem, on_host=False)
    cell = composed_cell(spec, dtype)
    return cell(*inputs).asnumpy(), cell.gradient(*inputs, ms.Tensor(1.0), ABSENT)[0].asnumpy()


@pytest.mark.parametrize("normalizer", [None, 8.0])
def test_a_mean_of_finite_losses_is_finite_where_their_sum_is_not(normalizer):
    logits = np.array([[0, 3e38]] * 4, np.float32)
    loss, grad = composed_loss(logits, np.zeros(4, np.int32), "float32", normalizer=normalizer)
    np.testing.assert_allclose(loss, np.float32(3e38 if normalizer is None else 1.5e38), rtol=1e-6)
    np.testing.assert_allclose(grad, [[-1 / (normalizer or 4), 1 / (normalizer or 4)]] * 4, rtol=1e-6)


def test_a_normalizer_that_rounds_to_0_is_no_empty_mean():
    loss, _ = composed_loss(np.zeros((2, 3), np.float32), np.zeros(2, np.int32), "float32", normalizer=1e-50)
    assert loss == np.inf
