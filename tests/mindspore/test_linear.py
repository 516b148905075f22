"""Second derivatives and forward mode of the fused linear form, against differences of NumPy's gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import unixent
import unixent_mindspore  # noqa: F401 - tells MindSpore's compiler of unixent

RNG = np.random.default_rng(12)
STEP = 1e-5
ARRAYS = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(5, 4)), RNG.normal(size=5)
DIRECTIONS = tuple(RNG.normal(size=array.shape) for array in ARRAYS)
INDEX, PROBABILITY = np.array([[0, -100, 4], [2, 2, 1]]), RNG.dirichlet(np.ones(5), size=(2, 3))
WEIGHT, MASK = RNG.uniform(0.5, 2, 5), np.array([[1, 0.5, 1], [2, 0, 1]])
EVERYTHING = {"weight": WEIGHT, "mask": MASK, "label_smoothing": 0.1, "z_loss": 0.02, "softcap": 3.0}
NAMES = ("hidden", "classifier", "bias")


def own(options):
    return {name: ms.Tensor(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}


def at(distance):
    return [array + distance * direction for array, direction in zip(ARRAYS, DIRECTIONS, strict=True)]


def expected_hvp(target, options):
    """The Hessian times DIRECTIONS, by central differences."""

    def gradients(distance):
        hidden, classifier, bias = at(distance)
        return unixent.linear_value_and_grad(hidden, classifier, target, bias=bias, wrt=NAMES, **options)[1]

    return [(ahead - behind) / (2 * STEP) for ahead, behind in zip(gradients(STEP), gradients(-STEP), strict=True)]


def second_order(target, options):
    target_, directions, given = ms.Tensor(target), [ms.Tensor(each) for each in DIRECTIONS], own(options)

    def loss(hidden, classifier, bias):
        return unixent.linear_cross_entropy(hidden, classifier, target_, bias=bias, **given)

    def along(hidden, classifier, bias):
        computed = ms.grad(loss, (0, 1, 2))(hidden, classifier, bias)
        total = (computed[0] * directions[0]).sum() + (computed[1] * directions[1]).sum()
        return total + (computed[2] * directions[2]).sum()

    def hvp(hidden, classifier, bias):
        return ms.grad(along, (0, 1, 2))(hidden, classifier, bias)

    return hvp


@pytest.mark.parametrize(
    ("target", "options"),
    [(INDEX, {}), (INDEX, {**EVERYTHING, "normalizer": 3.0}), (PROBABILITY, {**EVERYTHING, "reduction": "sum"})],
    ids=["plain", "every option", "probabilities"],
)
def test_second_derivatives_equal_differences(target, options):
    computed = second_order(target, options)(*map(ms.Tensor, ARRAYS))
    for got, expected in zip(computed, expected_hvp(target, options), strict=True):
        np.testing.assert_allclose(got.asnumpy(), expected, rtol=1e-6, atol=1e-8)


def test_second_derivatives_equal_differences_in_compiled_code():
    computed = ms.jit(second_order(INDEX, {}))(*map(ms.Tensor, ARRAYS))
    for got, expected in zip(computed, expected_hvp(INDEX, {}), strict=True):
        np.testing.assert_allclose(got.asnumpy(), expected, rtol=1e-6, atol=1e-8)


def test_second_derivatives_of_a_function_of_the_mean_equal_differences():
    """The upstream gradient depends on hidden too."""
    hidden, classifier, target, direction = ms.Tensor(ARRAYS[0]), ms.Tensor(ARRAYS[1]), ms.Tensor(INDEX), DIRECTIONS[0]

    def square(hidden):
        return unixent.linear_cross_entropy(hidden, classifier, target) ** 2

    def along(hidden):
        return (ms.grad(square)(hidden) * ms.Tensor(direction)).sum()

    def grad(hidden):
        value, computed = unixent.linear_value_and_grad(hidden, ARRAYS[1], INDEX, wrt="hidden")
        return 2 * value * computed

    expected = (grad(ARRAYS[0] + STEP * direction) - grad(ARRAYS[0] - STEP * direction)) / (2 * STEP)
    np.testing.assert_allclose(ms.grad(along)(hidden).asnumpy(), expected, rtol=1e-6, atol=1e-8)


def test_an_inactive_position_contributes_exactly_zero():
    hidden = ARRAYS[0].copy()
    hidden[0, 1] = np.nan
    computed = second_order(INDEX, {})(ms.Tensor(hidden), *map(ms.Tensor, ARRAYS[1:]))
    expected = expected_hvp(INDEX, {})
    expected[0][0, 1] = 0
    for got, due in zip(computed, expected, strict=True):
        np.testing.assert_allclose(got.asnumpy(), due, rtol=1e-6, atol=1e-8)


def test_jvp_equals_the_gradient_along_the_tangent():
    target = ms.Tensor(INDEX)

    def loss(hidden, classifier, bias):
        return unixent.linear_cross_entropy(hidden, classifier, target, bias=bias)

    tangent = ms.jvp(loss, tuple(map(ms.Tensor, ARRAYS)), tuple(map(ms.Tensor, DIRECTIONS)))[1]
    hidden, classifier, bias = ARRAYS
    grads = unixent.linear_value_and_grad(hidden, classifier, INDEX, bias=bias, wrt=NAMES)[1]
    expected = sum((grad * direction).sum() for grad, direction in zip(grads, DIRECTIONS, strict=True))
    np.testing.assert_allclose(tangent.asnumpy(), expected, rtol=1e-12)


def test_third_derivatives_are_refused():
    classifier, target = ms.Tensor(ARRAYS[1]), ms.Tensor(INDEX)

    def loss(hidden):
        return unixent.linear_cross_entropy(hidden, classifier, target)

    def first(hidden):
        return ms.grad(loss)(hidden).sum()

    def second(hidden):
        return ms.grad(first)(hidden).sum()

    with pytest.raises(NotImplementedError, match="at most two derivatives"):
        ms.grad(second)(ms.Tensor(ARRAYS[0]))
