"""What the adapter declares, on the device that MindSpore computes on."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest

import unixent
from unixent_mindspore import backend, kernel

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
    assert not backend.capabilities.batch_invariant
    loss, grad = ms.value_and_grad(unixent.cross_entropy)(logits, target)
    expected = unixent.value_and_grad(np.eye(4), target.asnumpy())
    np.testing.assert_allclose(loss.asnumpy(), expected[0], rtol=1e-12)
    np.testing.assert_allclose(grad.asnumpy(), expected[1], rtol=1e-12, atol=1e-16)
