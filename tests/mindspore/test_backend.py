"""What the adapter declares, on the device that MindSpore computes on."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import unixent
from unixent_mindspore import backend, kernel, loss_cell
from unixent_mindspore.logits.curvature import Curvature

HIDDEN, CLASSIFIER, INDEX = ms.Tensor(np.ones((2, 3))), ms.Tensor(np.ones((4, 3))), ms.Tensor([0, 3], ms.int32)


@pytest.fixture
def accelerator(monkeypatch) -> None:
    """As on an accelerator: tensors are not in host memory."""
    monkeypatch.setattr(kernel, "on_host", lambda: False)


def test_the_linear_form_is_declared_and_served_on_cpu():
    assert backend.capabilities.linear
    loss = unixent.linear_cross_entropy(HIDDEN, CLASSIFIER, INDEX)
    np.testing.assert_allclose(loss.asnumpy(), np.log(4), rtol=1e-14)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("form", ["eager", "jit"])
def test_the_linear_form_is_neither_declared_nor_served_on_an_accelerator(form):
    assert not backend.capabilities.linear

    def loss(hidden, classifier):
        return unixent.linear_cross_entropy(hidden, classifier, INDEX)

    call = ms.jit(loss) if form == "jit" else loss
    with pytest.raises(unixent.BackendError, match="mindspore backend does not provide the fused linear form"):
        call(HIDDEN, CLASSIFIER)


@pytest.mark.usefixtures("accelerator")
def test_what_is_declared_on_an_accelerator_is_served():
    logits, target = ms.Tensor(np.eye(4)), ms.Tensor([0, 1, 2, -100], ms.int32)
    assert not backend.devices()[0].batch_invariant
    loss, grad = ms.value_and_grad(unixent.cross_entropy)(logits, target)
    expected = unixent.value_and_grad(np.eye(4), target.asnumpy())
    np.testing.assert_allclose(loss.asnumpy(), expected[0], rtol=1e-12)
    np.testing.assert_allclose(grad.asnumpy(), expected[1], rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", ["axis", "ignore_index", "num_classes", "label_smoothing", "z_loss", "softcap"])
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: ms.Parameter(value, name="option")])
def test_a_floating_tensor_as_an_option_is_refused(name, wrap):
    with pytest.raises(unixent.OptionError, match=f"{name}: expected .*; got "):
        unixent.cross_entropy(ms.Tensor(np.eye(4)), INDEX, **{name: wrap(ms.Tensor(1.0))})


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {
    "foreign byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "negative strides": lambda array: array[::-1].copy()[::-1],
    "read-only": read_only,
    "list": np.ndarray.tolist,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["eager", "jit"])
def test_arguments_of_numpy_are_taken_in_any_layout(form, layout):
    change = LAYOUTS[layout]
    logits, target, mask, weight = np.eye(4), np.array([0, 3, 1, 1]), np.array([1.0, 0, 2, 1]), np.arange(1.0, 5)
    probabilities = np.full((4, 4), 0.25)

    given = [change(each) for each in (target, probabilities, mask, weight)]

    def losses(logits):
        first = unixent.cross_entropy(logits, given[0], mask=given[2], weight=given[3])
        return first, unixent.cross_entropy(logits, given[1], mask=given[2], weight=given[3])

    computed = (ms.jit(losses) if form == "jit" else losses)(ms.Tensor(logits))
    for actual, each in zip(computed, (target, probabilities), strict=True):
        expected = unixent.cross_entropy(logits, each, mask=mask, weight=weight)
        np.testing.assert_allclose(actual.asnumpy(), expected, rtol=1e-14)


def test_what_differentiates_twice_is_made_when_it_is_first_asked_for(monkeypatch):
    made = []
    monkeypatch.setattr(loss_cell, "Curvature", lambda *spec: made.append(spec) or Curvature(*spec))
    logits, target = ms.Tensor([[2.0, 0.5, -1.0]], ms.float32), ms.Tensor([0], ms.int32)

    def grad(x):
        return ms.grad(lambda x: unixent.cross_entropy(x, target, scale=1.234375))(x)

    unixent.cross_entropy(logits, target, scale=1.234375)
    grad(logits)
    assert not made
    ms.grad(grad)(logits)
    ms.grad(grad)(logits)
    assert len(made) == 1
