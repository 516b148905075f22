"""Log-probabilities of targets through the Triton programs, against torch's operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import unixent
from unixent_torch.kernel import triton
from unixent_torch.kernel.triton import configuration

N, C = 12, 70
OPTIONS: list[dict[str, Any]] = [
    {},
    {"softcap": 5.0, "temperature": 0.7},
    {"mask": torch.tensor([0.0, 0.5, 2.0] * 4)},
    {"num_classes": 61},
    {"axis": 0},
]


def example(dtype: torch.dtype, axis: int = -1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, target = torch.randn(N, C) * 4, torch.randint(60, (N,))
    x[0], x[4, 9], x[5, 3] = torch.nan, -torch.inf, torch.inf
    target[0], target[1], target[2] = -100, -100, C
    x = x.to(dtype)
    return (x.t().contiguous() if axis == 0 else x), target


def both(x: Tensor, target: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient in a backward pass, and gradient beside the value."""
    leaf = x.clone().requires_grad_()
    options = {**options, "dtype": "float32", "validate": "off"}
    log_prob = unixent.position_stats(leaf, target, outputs=("log_prob",), **options).log_prob
    upstream = torch.linspace(-1, 2, N)
    log_prob.backward(upstream)
    stats = unixent.PositionStats(log_prob=upstream)
    beside, grad = unixent.position_stats_and_grad(x, target, grad_output=stats, outputs=("log_prob",), **options)
    assert leaf.grad is not None
    torch.testing.assert_close(beside.log_prob, log_prob.detach(), rtol=0, atol=0, equal_nan=True)
    return log_prob.detach(), leaf.grad, grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=[",".join(options) or "plain" for options in OPTIONS])
def test_they_are_those_of_operators(
    options: dict[str, Any], dtype: torch.dtype, tiles: str, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, target = example(dtype, options.get("axis", -1))
    got = both(x, target, options)
    assert passes == ["row_statistics", "row_gradients"] * 2
    monkeypatch.setattr(triton, "DEVICES", [])
    eps = torch.finfo(dtype).eps
    for ours, theirs in zip(got, both(x, target, options), strict=True):
        rtol = 1e-5 if ours.dtype is torch.float32 else eps
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=2e-6, equal_nan=True)


def test_beside_other_outputs_operators_serve(passes: list[str]) -> None:
    x, target = example(torch.float32)
    unixent.position_stats(x, target, outputs=("log_prob", "entropy"), validate="off")
    assert not passes


def test_chunks_of_the_linear_form_do_too(passes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, classifier, target = torch.randn(N, 6), torch.randn(C, 6), torch.randint(C, (N,))

    def gradients() -> list[Tensor]:
        leaves = [hidden.clone().requires_grad_(), classifier.clone().requires_grad_()]
        stats = unixent.linear_position_stats(*leaves, target, outputs=("log_prob",), chunk=5)
        stats.log_prob.sum().backward()
        return [stats.log_prob.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    got = gradients()
    assert set(passes) == {"row_statistics", "row_gradients"}
    monkeypatch.setattr(triton, "DEVICES", [])
    for ours, theirs in zip(got, gradients(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_confident_row_keeps_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "INDEX_TILE", 16)
    x = torch.zeros(1, C)
    x[0, 7] = 40.0
    log_prob = unixent.position_stats(x, torch.tensor([7]), outputs=("log_prob",)).log_prob
    exact = -((C - 1) * torch.exp(torch.tensor(-40.0, dtype=torch.float64))).log1p()
    assert abs(log_prob.double() / exact - 1) < 1e-6
