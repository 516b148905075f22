"""Options and sums beyond the accumulation dtype, and tensors whose sign is a bit of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import unixent


def compiled(form: Any) -> Any:
    def call(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        torch.compiler.reset()
        return torch.compile(lambda x, y: form(x, y, **options), fullgraph=True, backend="aot_eager")(x, y)

    return call


def exported(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    class Program(torch.nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return unixent.cross_entropy(x, y, **options)

    return torch.export.export(Program(), (x, y)).module()(x, y)


X, Y = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0]]), torch.tensor([0, 1])
FORMS: dict[str, Any] = {
    "logits": unixent.cross_entropy,
    "linear": lambda x, y, **options: unixent.linear_cross_entropy(x, torch.eye(x.shape[-1]), y, **options),
    "value_and_grad": lambda x, y, **options: unixent.value_and_grad(x, y, **options)[0],
    "autograd": lambda x, y, **options: unixent.cross_entropy(x.clone().requires_grad_(), y, **options).detach(),
    "vmap": lambda x, y, **o: torch.func.vmap(lambda x: unixent.cross_entropy(x, y, **o))(x.expand(2, *x.shape))[1],
    "compile": compiled(unixent.cross_entropy),
    "compiled gradient": compiled(lambda x, y, **options: unixent.value_and_grad(x, y, **options)[0]),
    "compiled linear": compiled(
        lambda x, y, **options: unixent.linear_cross_entropy(x, torch.eye(x.shape[-1]), y, **options)
    ),
    "export": exported,
    "torch.func": lambda x, y, **o: torch.func.grad_and_value(lambda x: unixent.cross_entropy(x, y, **o))(x)[1],
}


@pytest.mark.parametrize("call", FORMS.values(), ids=FORMS)
def test_a_softcap_beyond_float32_is_no_cap_or_the_smallest(call: Any) -> None:
    torch.testing.assert_close(call(X, Y, softcap=1e300), call(X, Y))
    torch.testing.assert_close(call(X, Y, softcap=1e-50), torch.tensor(3.0).log())


@pytest.mark.parametrize("call", FORMS.values(), ids=FORMS)
def test_the_mean_of_finite_losses_is_finite(call: Any) -> None:
    huge = torch.tensor([[3e38, 0.0], [3e38, 0.0]])
    y = torch.tensor([1, 1])
    torch.testing.assert_close(call(huge, y), torch.tensor(3e38))
    torch.testing.assert_close(call(huge, y, normalizer=4.0), torch.tensor(1.5e38))


@pytest.mark.parametrize("rows", [2, 1])
def test_its_gradient_is_that_of_any_mean(rows: int) -> None:
    huge, y, due = (
        torch.tensor([[3e38, 0.0]] * rows),
        torch.tensor([1] * rows),
        torch.tensor([[1.0, -1.0]] * rows) / rows,
    )

    def loss(x: Tensor) -> Tensor:
        return unixent.cross_entropy(x, y)

    torch.compiler.reset()
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x = huge.clone().requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(call(x), x)[0], due)
    torch.testing.assert_close(torch.func.grad(loss)(huge), due)
    torch.testing.assert_close(torch.func.jacfwd(loss)(huge), due)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(huge[None])[0], due)


def test_the_mean_of_an_infinite_loss_is_infinite() -> None:
    assert unixent.cross_entropy(torch.tensor([[-float("inf"), 0.0], [0.0, 0.0]]), Y).isinf()


@pytest.mark.parametrize("call", FORMS.values(), ids=FORMS)
def test_a_normalizer_below_float32_still_divides(call: Any) -> None:
    confident = torch.tensor([[90.0, 0.0], [90.0, 0.0]])
    y = torch.tensor([0, 0])
    loss = call(confident.double(), y, reduction="sum")
    for normalizer in (1e-50, torch.tensor(1e-50, dtype=torch.float64)):
        torch.testing.assert_close(call(confident, y, normalizer=normalizer).double(), loss / 1e-50, rtol=1e-5, atol=0)


@pytest.mark.parametrize("call", FORMS.values(), ids=FORMS)
def test_an_empty_mean_of_nan_is_nan(call: Any) -> None:
    nan = torch.full((2, 3), float("nan"))
    for options in ({"normalizer": 0.0}, {"normalizer": torch.tensor(0.0)}, {"weight": torch.zeros(3)}):
        assert call(nan, Y, **options).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"softcap": 3.0}, {"reduction": "sum"}], ids=str)
def test_the_negative_bit_is_a_sign(options: dict[str, Any], dtype: torch.dtype) -> None:
    base, y = torch.linspace(-4, 5, 160).view(4, 40).to(dtype), torch.tensor([0, 1, 2, 3])
    x, plain = torch._neg_view(base), -base
    q = torch._neg_view(-plain.softmax(1))

    def results(x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        loss = unixent.cross_entropy(x, target, **options)
        loss.backward()
        return loss.detach(), x.grad, *unixent.value_and_grad(x.detach(), target, **options)

    for target in (y, torch._neg_view(-y), q):
        torch.testing.assert_close(results(x, target), results(plain, target.resolve_neg()), rtol=0, atol=0)
