"""Infinities and empty means in every form: eager, by MindSpore's differentiation, compiled, linear."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import unixent
import unixent_mindspore  # noqa: F401 - tells MindSpore's compiler of unixent

INF = np.inf
LOGITS = np.array([[-INF, 0, 1], [0, 1, 2]])
INDEX, PROBABILITIES = np.array([2, 1]), np.array([[0, 0.75, 0.25], [0.5, 0.5, 0]])
FORMS = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])


def derivatives(function, compiled):
    """Value, gradients and second derivatives along a direction, for logits and target."""

    def grads(logits, target):
        return ms.grad(function, (0, 1))(logits, target)

    def all_of_them(logits, target, *directions):
        hvp = ms.ops.GradOperation(get_all=True, sens_param=True)(grads)(logits, target, directions)
        return function(logits, target), grads(logits, target), hvp

    return ms.jit(all_of_them) if compiled else all_of_them


@FORMS
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_class_at_minus_infinity_has_derivative_0_of_both_orders(softcap, compiled):
    """As if it weren't there, with probability targets and any directions."""

    def loss(logits, target):
        return unixent.cross_entropy(logits, target, softcap=softcap)

    directions = np.array([[1.0, 2, -1], [1, 0, 1]]), np.zeros((2, 3))
    without = [np.delete(item[:1], 0, 1) for item in (LOGITS, PROBABILITIES, *directions)]
    value, grads, hvp = derivatives(loss, compiled)(
        *(ms.Tensor(item[:1]) for item in (LOGITS, PROBABILITIES, *directions))
    )
    expected, due, second = derivatives(loss, False)(*map(ms.Tensor, without))
    np.testing.assert_allclose(value.asnumpy(), expected.asnumpy(), rtol=1e-14)
    for actual, reference in ((grads[0], due[0]), (hvp[0], second[0])):
        np.testing.assert_allclose(actual.asnumpy(), np.insert(reference.asnumpy(), 0, 0, 1), rtol=1e-12)
    np.testing.assert_allclose(hvp[1].asnumpy()[:, 1:], second[1].asnumpy(), rtol=1e-12)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_forward_mode_is_finite_at_minus_infinity(softcap):
    bias, hidden, classifier = ms.Tensor(LOGITS[0]), ms.Tensor(np.ones((1, 2))), ms.Tensor(np.zeros((3, 2)))
    target = ms.Tensor(PROBABILITIES[:1])

    def of_logits(logits, target):
        return unixent.cross_entropy(logits, target, softcap=softcap)

    def of_bias(bias, target):
        return unixent.linear_cross_entropy(hidden, classifier, target, bias=bias, softcap=softcap)

    tangents = []
    for function, point in ((of_logits, ms.Tensor(LOGITS[:1])), (of_bias, bias)):
        zeros = ms.Tensor(np.zeros((1, 3)))
        direction = ms.Tensor(np.broadcast_to([1.0, 2, -1], point.shape).copy())
        tangents.append(ms.jvp(function, (point, target), (direction, zeros))[1].asnumpy())
        grad = unixent.value_and_grad(LOGITS[:1], PROBABILITIES[:1], softcap=softcap)[1]
        np.testing.assert_allclose(tangents[-1], (grad * [1, 2, -1]).sum(), rtol=1e-12)


@FORMS
def test_an_infinite_gradient_of_a_target_times_an_upstream_0_is_0(compiled):
    def grads(logits, target, upstream):
        pullback = ms.ops.GradOperation(get_all=True, sens_param=True)

        def loss(logits, target):
            return unixent.cross_entropy(logits, target, reduction="none")

        return pullback(loss)(logits, target, upstream)

    run = ms.jit(grads) if compiled else grads
    logits, target = run(ms.Tensor(LOGITS), ms.Tensor(PROBABILITIES), ms.Tensor(np.array([0.0, 1.0])))
    np.testing.assert_array_equal(logits.asnumpy()[0], 0)
    np.testing.assert_array_equal(target.asnumpy()[0], 0)


@FORMS
@pytest.mark.parametrize("on_empty", ["zero", "nan"])
@pytest.mark.parametrize("linear", [False, True], ids=["logits", "linear"])
def test_an_empty_mean_of_a_nan_is_nan(linear, on_empty, compiled):
    logits, options = np.array([[np.nan, 0, 1], [0, 1, 2]]), {"normalizer": 0.0, "on_empty": on_empty}
    # The hidden states are rows of the identity, so that the logits are the bias and the classifier's columns.
    scores = (ms.Tensor(logits),) if not linear else (ms.Tensor(logits), ms.Tensor(np.eye(3)))
    function = unixent.linear_cross_entropy if linear else unixent.cross_entropy
    target = ms.Tensor(INDEX)

    def loss(*scores):
        return function(*scores, target, **options)

    assert np.isnan((ms.jit(loss) if compiled else loss)(*scores).asnumpy())


@FORMS
def test_a_mean_of_finite_losses_is_finite_where_their_sum_is_not(compiled):
    logits, target = np.array([[0, 3e38]] * 4, np.float32), np.zeros(4, np.int64)
    loss = ms.jit(unixent.cross_entropy) if compiled else unixent.cross_entropy
    np.testing.assert_allclose(loss(ms.Tensor(logits), ms.Tensor(target)).asnumpy(), np.float32(3e38), rtol=1e-6)
