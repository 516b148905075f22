"""`num_classes` in MindSpore's forms: padding changes nothing and has gradient 0, whatever it holds."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import unixent
import unixent_mindspore

RNG = np.random.default_rng(0)
C, HELD = 5, 8
HIDDEN, CLASSIFIER, BIAS = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(C, 4)), RNG.normal(size=C)
LOGITS, INDEX, PROBABILITIES = RNG.normal(size=(2, C, 3)), RNG.integers(C, size=(2, 3)), RNG.random((2, C, 3))
DIRECTION = RNG.normal(size=(2, HELD, 3))
OPTIONS = [
    {},
    {"label_smoothing": 0.1, "weight": np.arange(1.0, C + 1), "reduction": "none"},
    {"softcap": 3.0, "z_loss": 0.1},
]
TARGETS = pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["index", "probability"])
FORMS = pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])


def padded(array, axis):
    padding = [(0, HELD - C if each == axis else 0) for each in range(array.ndim)]
    return np.pad(array, padding, constant_values=np.nan)


def padded_target(target):
    return target if target is INDEX else padded(target, 1)


def assert_padded(actual, expected, axis):
    existing, padding = np.split(actual.asnumpy(), [C], axis)
    np.testing.assert_allclose(existing, expected, rtol=1e-12)
    assert padding.shape[axis] == HELD - C
    assert not padding.any()


@FORMS
@TARGETS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_changes_nothing_to_two_derivatives(options, target, compiled):
    own = {name: ms.Tensor(value) if isinstance(value, np.ndarray) else value for name, value in options.items()}

    def loss(logits, target):
        return unixent.cross_entropy(logits, target, axis=1, num_classes=C, **own).sum()

    def reference(logits, target):
        return unixent.cross_entropy(logits, target, axis=1, **own).sum()

    def derivatives(function):
        def grad(logits, target):
            return ms.grad(function)(logits, target)

        def all_of_them(logits, target, direction):
            hvp = ms.ops.GradOperation(sens_param=True)(grad)(logits, target, direction)
            return function(logits, target), grad(logits, target), hvp

        return ms.jit(all_of_them) if compiled else all_of_them

    value, *grads = derivatives(loss)(*map(ms.Tensor, (padded(LOGITS, 1), padded_target(target), DIRECTION)))
    expected, *due = derivatives(reference)(*map(ms.Tensor, (LOGITS, target, DIRECTION[:, :C])))
    np.testing.assert_allclose(value.asnumpy(), expected.asnumpy(), rtol=1e-14)
    for grad, each in zip(grads, due, strict=True):
        assert_padded(grad, each.asnumpy(), 1)


@TARGETS
def test_compiled_value_and_grad_pads_its_gradients(target):
    wrt = ("logits",) if target is INDEX else ("target", "logits")

    @ms.jit
    def both(logits, target):
        return unixent.value_and_grad(logits, target, axis=1, num_classes=C, wrt=wrt)

    value, grads = both(ms.Tensor(padded(LOGITS, 1)), ms.Tensor(padded_target(target)))
    expected, due = unixent.value_and_grad(LOGITS, target, axis=1, wrt=wrt)
    np.testing.assert_allclose(value.asnumpy(), expected, rtol=1e-14)
    for grad, each in zip(grads, due, strict=True):
        assert_padded(grad, each, 1)


@FORMS
@pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16], ids=str)
def test_half_precision_differentiates_through_the_existing_classes(dtype, compiled):
    def loss(logits):
        return unixent.cross_entropy(logits, ms.Tensor(INDEX), axis=1, num_classes=C)

    def derivative(logits):
        return ms.grad(loss)(logits)

    grad = (ms.jit(derivative) if compiled else derivative)(ms.Tensor(padded(LOGITS, 1)).astype(dtype))
    assert grad.dtype == dtype
    rounded = ms.Tensor(LOGITS).astype(dtype).astype(ms.float64).asnumpy()
    due = unixent.value_and_grad(rounded, INDEX, axis=1)[1]
    existing, padding = np.split(grad.astype(ms.float64).asnumpy(), [C], 1)
    np.testing.assert_allclose(existing, due, rtol=2.0**-7)
    assert not padding.any()


@FORMS
def test_a_padded_classifier_gets_a_padded_gradient(compiled):
    def both(hidden, classifier, bias, target):
        return unixent.linear_value_and_grad(hidden, classifier, target, bias=bias, num_classes=C)

    run = ms.jit(both) if compiled else both
    loss, grads = run(*map(ms.Tensor, (HIDDEN, padded(CLASSIFIER, 0), padded(BIAS, 0), INDEX)))
    expected, due = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, INDEX, bias=BIAS)
    np.testing.assert_allclose(loss.asnumpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(grads[0].asnumpy(), due[0], rtol=1e-12)
    for grad, each in zip(grads[1:], due[1:], strict=True):
        assert_padded(grad, each, 0)


@FORMS
@pytest.mark.parametrize("module", [unixent.CrossEntropyLoss, unixent_mindspore.CrossEntropyLoss], ids=str)
def test_modules_take_num_classes(module, compiled):
    loss = module(num_classes=C, axis=1)

    def of_logits(logits, target):
        return loss(logits, target)

    def value_and_grad(logits, target):
        return ms.value_and_grad(of_logits)(logits, target)

    run = ms.jit(value_and_grad) if compiled else value_and_grad
    value, grad = run(ms.Tensor(padded(LOGITS, 1)), ms.Tensor(INDEX))
    expected, due = unixent.value_and_grad(LOGITS, INDEX, axis=1)
    np.testing.assert_allclose(value.asnumpy(), expected, rtol=1e-14)
    assert_padded(grad, due, 1)


def test_more_classes_than_there_are_raise_while_compiling():
    @ms.jit
    def loss(logits, target):
        return unixent.cross_entropy(logits, target, axis=1, num_classes=HELD)

    with pytest.raises(unixent.OptionError, match=r"num_classes: expected None or an int in \[1, 5\]; got 8"):
        loss(ms.Tensor(LOGITS), ms.Tensor(INDEX))
