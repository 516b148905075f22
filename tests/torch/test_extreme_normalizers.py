"""A normalizer that float32 cannot hold divides all the same: the loss and the gradients are those of float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad_and_value, jvp, vmap

import unixent
from unixent_torch import CrossEntropyLoss

# Confident rows, one whose gradient is 0, and one with a class of probability 0.
LOGITS = torch.tensor([[90.0, 0.0, 1.0], [300.0, 0.0, -300.0], [60.0, -torch.inf, 0.0], [-70.0, 0.0, -90.0]])
INDEX = torch.tensor([0, 0, 0, 1])
EYE = torch.eye(3)

Loss = Callable[[Tensor, Tensor, Any], Tensor]
LOSSES: dict[str, Loss] = {
    "logits": lambda x, y, n: unixent.cross_entropy(x, y, normalizer=n),
    "module": lambda x, y, n: CrossEntropyLoss()(x, y, normalizer=n),
    "linear": lambda x, y, n: unixent.linear_cross_entropy(x, EYE.to(x.dtype), y, normalizer=n),
}
NORMALIZERS: dict[str, Any] = {
    "small": 1e-50,
    "smaller": 3e-60,
    "subnormal": 1e-42,
    "large": 1e50,
    "NumPy": np.float64(1e-50),
    "tensor": torch.tensor(1e-50, dtype=torch.float64),
    "large tensor": torch.tensor(1e50, dtype=torch.float64),
}


def reverse(loss: Loss, x: Tensor, y: Tensor, n: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = loss(x, y, n)
    return value.detach(), torch.autograd.grad(value, x)[0]


def compiled(loss: Loss, x: Tensor, y: Tensor, n: Any) -> tuple[Tensor, Tensor]:
    torch.compiler.reset()
    return reverse(torch.compile(loss, fullgraph=True, backend="aot_eager"), x, y, n)


def forward(loss: Loss, x: Tensor, y: Tensor, n: Any) -> tuple[Tensor, Tensor]:
    directions = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    value, gradient = vmap(lambda t: jvp(lambda x: loss(x, y, n), (x,), (t,)))(directions)
    return value[0], gradient.view_as(x)


def of_batch(loss: Loss, x: Tensor, y: Tensor, n: Any) -> tuple[Tensor, Tensor]:
    gradients, values = vmap(grad_and_value(lambda x: loss(x, y, n)))(x.expand(2, -1, -1))
    return values[1], gradients[1]


class Program(nn.Module):
    def __init__(self, loss: Loss, normalizer: Any) -> None:
        super().__init__()
        self.loss, self.normalizer = loss, normalizer

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(x, y, self.normalizer)


def exported(loss: Loss, x: Tensor, y: Tensor, n: Any) -> tuple[Tensor, Tensor]:
    program = torch.export.export(Program(loss, n), (x, y)).module()
    return reverse(lambda x, y, n: program(x, y), x, y, n)


WAYS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reverse": reverse,
    "grad": lambda loss, x, y, n: grad_and_value(loss)(x, y, n)[::-1],
    "forward": forward,
    "vmap": of_batch,
    "compile": compiled,
    "export": exported,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", WAYS)
def test_it_divides_as_in_float64(way: str, loss: str, normalizer: str) -> None:
    x = LOGITS if loss != "linear" else LOGITS.clamp(min=-400)
    due = reverse(LOSSES[loss], x.double(), INDEX, NORMALIZERS[normalizer])
    value, gradient = WAYS[way](LOSSES[loss], x, INDEX, NORMALIZERS[normalizer])
    assert value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value, due[0].float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, due[1].float(), rtol=1e-5, atol=1e-45)


@pytest.mark.parametrize("upstream", [0.0, 1e-20])
@pytest.mark.parametrize("form", [unixent.value_and_grad, unixent.linear_value_and_grad])
def test_an_upstream_gradient_scales_what_it_divides(form: Callable[..., Any], upstream: float) -> None:
    x = LOGITS.clamp(min=-400)
    linear = form is unixent.linear_value_and_grad
    calls = [(x.to(dtype), *((EYE.to(dtype),) if linear else ()), INDEX) for dtype in (torch.float32, torch.float64)]
    wrt = "hidden" if linear else "logits"
    (got, due) = (form(*call, normalizer=1e-50, wrt=wrt, grad_output=torch.tensor(upstream))[1] for call in calls)
    torch.testing.assert_close(got, due.float(), rtol=1e-5, atol=0)


def test_second_derivatives_divide_by_it_too() -> None:
    def second(x: Tensor) -> Tensor:
        return torch.func.hessian(lambda x: unixent.cross_entropy(x, INDEX, normalizer=1e-30))(x)

    x = LOGITS[[0, 1, 3, 3]]
    torch.testing.assert_close(second(x), second(x.double()).float(), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("way", ["reverse", "grad", "compile"])
def test_a_softcap_is_rounded_as_without_it(way: str) -> None:
    """Below float32's smallest normal number a softcap is that, in whatever dtype the call accumulates."""

    def capped(softcap: float) -> tuple[Tensor, Tensor]:
        x = torch.tensor([[3e-38, 0.0, -1e-38], [2e-38, 0.0, 0.0]])

        def loss(x: Tensor, y: Tensor, n: Any) -> Tensor:
            return unixent.cross_entropy(x, y, softcap=softcap, normalizer=n)

        return WAYS[way](loss, x, INDEX[:2], 1e-30)

    torch.testing.assert_close(capped(1e-50), capped(2.0**-126), rtol=0, atol=0)
    assert capped(1e-50)[1].any()
