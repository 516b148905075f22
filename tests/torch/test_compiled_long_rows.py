"""Rows so long that a compiled loss calls the native kernel, as an operator of torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import unixent
import unixent_native

pytestmark = pytest.mark.usefixtures("fresh_compiler")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ignore": {"ignore_index": 3},
    "all": {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0, "weight": torch.linspace(0, 1, 3000)},
}


@pytest.mark.skipif(unixent_native.load() is None, reason="without the native kernel every loss is a composition")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_long_rows_have_the_bits_of_the_native_kernel(options: dict[str, Any], dtype: torch.dtype) -> None:
    def call(x: Any, y: Any) -> Any:
        return unixent.cross_entropy(x, y, reduction="none", **options)

    compiled = torch.compile(call, fullgraph=True, dynamic=True)
    for rows in (6, 9):
        x, y = torch.randn(rows, 3000).to(dtype).requires_grad_(), torch.randint(3000, (rows,))
        got, due = compiled(x, y), call(x, y)
        assert torch.equal(got, due)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), x), torch.autograd.grad(due.sum(), x), rtol=0, atol=0)


@pytest.mark.skipif(unixent_native.load() is None, reason="without the native kernel every loss is a composition")
def test_the_operator_passes_torchs_own_checks() -> None:
    x, q, y = torch.randn(6, 3000), torch.rand(6, 3000), torch.randint(3000, (6,))
    options = (torch.float32, 0.1, 1e-3, 5.0, 0.7)
    for target in (y, q.requires_grad_()):
        operands = (x.requires_grad_(), target, torch.rand(3000), torch.rand(6))
        torch.library.opcheck(torch.ops.unixent.cross_entropy.default, (*operands, None, *options, ""))
    x, q = x.detach(), q.detach()
    torch.library.opcheck(
        torch.ops.unixent.cross_entropy.default,
        (x.t().contiguous().t(), q, None, None, torch.rand(6), *options, "logits target"),
    )


def test_long_rows_are_differentiated_twice_where_the_compiler_runs_operators_as_they_are() -> None:
    x, y = torch.randn(6, 3000, requires_grad=True), torch.randint(3000, (6,))

    def penalty(call: Callable[..., Any]) -> torch.Tensor:
        (grad,) = torch.autograd.grad(call(x, y), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    compiled = torch.compile(unixent.cross_entropy, fullgraph=True, backend="eager")
    torch.testing.assert_close(penalty(compiled), penalty(unixent.cross_entropy))


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_of_long_rows_has_no_operator_of_ours(strict: bool) -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return unixent.cross_entropy(x, y)

    x, y = torch.randn(6, 3000), torch.randint(3000, (6,))
    program = torch.export.export(Loss(), (x, y), strict=strict)
    assert not [node for node in program.graph.nodes if "unixent" in str(node.target)]
