"""The Triton programs as operators of compiled programs. The interpreter runs inside: the compiler sees no programs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import unixent

C = 2304  # long enough for the operator


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def example(target_kind: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = (torch.randn(2, 3, C) * 4).to(dtype)
    y = torch.randint(C, (2, 3))
    y[1, 2] = -100
    probabilities = torch.softmax(torch.randn(2, 3, C), -1).requires_grad_()
    return x.requires_grad_(), y if target_kind == "indices" else probabilities


OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 20.0, "temperature": 2.0}, {"reduction": "none"}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "every option", "unreduced"])
@pytest.mark.parametrize("target_kind", ["indices", "probabilities"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_loss_reads_twice_and_writes_once(
    backend: str, target_kind: str, options: dict[str, object], passes: list[str]
) -> None:
    def loss(x: Tensor, target: Tensor) -> Tensor:
        return unixent.cross_entropy(x, target, mask=mask, **options) * 3

    mask = torch.ones(2, 3)
    mask[0, 1] = 0
    x, target = example(target_kind)
    wrt = (x, target) if target_kind == "probabilities" else (x,)
    due = loss(x, target)
    due_grads = torch.autograd.grad(due.sum(), wrt)
    passes.clear()
    got = torch.compile(loss, backend=backend, fullgraph=True)(x, target)
    grads = torch.autograd.grad(got.sum(), wrt)
    assert passes == ["row_statistics", "row_gradients"]
    torch.testing.assert_close(got, due)
    for grad, due_grad in zip(grads, due_grads, strict=True):
        torch.testing.assert_close(grad, due_grad)


def test_a_compiled_value_and_grad_is_the_same_two_operators(passes: list[str]) -> None:
    x, y = example("indices", torch.bfloat16)
    due, due_grad = unixent.value_and_grad(x, y)
    passes.clear()
    compiled = torch.compile(lambda x: unixent.value_and_grad(x, y), backend="aot_eager", fullgraph=True)
    got, grad = compiled(x)
    assert passes == ["row_statistics", "row_gradients"]
    assert torch.equal(got, due)
    assert torch.equal(grad, due_grad)


def test_float64_stays_a_composition(passes: list[str]) -> None:
    x, y = example("indices", torch.float64)
    due = unixent.cross_entropy(x, y)
    got = torch.compile(unixent.cross_entropy, backend="aot_eager", fullgraph=True)(x, y)
    assert not passes
    torch.testing.assert_close(got, due)


def test_a_row_that_is_differentiated_twice_has_the_second_derivative() -> None:
    x, y = example("indices")
    loss = torch.compile(unixent.cross_entropy, backend="eager", fullgraph=True)
    direction = torch.randn_like(x)
    (grad,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
    (got,) = torch.autograd.grad(grad, x, direction)
    (grad,) = torch.autograd.grad(unixent.cross_entropy(x, y), x, create_graph=True)
    (due,) = torch.autograd.grad(grad, x, direction)
    torch.testing.assert_close(got, due)


@pytest.mark.parametrize("target_kind", ["indices", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_operators_pass_torchs_own_checks(target_kind: str, smoothing: float) -> None:
    x, target = example(target_kind)
    target = target.clamp(min=0).detach()
    operands = (x, target, torch.rand(C), torch.rand(2, 3))
    options = (torch.float32, smoothing, 0.01, 5.0, 0.5)
    torch.library.opcheck(torch.ops.unixent.row_statistics.default, (*operands, *options))
    _, columns, pivot = torch.ops.unixent.row_statistics(*operands, *options)
    inputs = (x.detach(), *operands[1:], torch.rand(2, 3), columns.detach(), pivot, *options, "logits")
    torch.library.opcheck(torch.ops.unixent.row_gradients.default, inputs)
