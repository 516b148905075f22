"""Split losses at the ends of the numbers: those of a whole loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import unixent

LOGITS = torch.tensor([[90.0, 0, 1, 2], [300.0, 0, -300, 2], [60.0, -torch.inf, 0, 2], [-70.0, 0, -90, 2]])
HUGE = torch.tensor([[3e38, 0, 1, 2]]).repeat(4, 1)
CASES: dict[str, tuple[Tensor, Tensor, dict[str, Any]]] = {
    "small normalizer": (LOGITS, torch.tensor([0, 0, 0, 1]), {"normalizer": 1e-50}),
    "small tensor": (LOGITS, torch.tensor([0, 0, 0, 1]), {"normalizer": torch.tensor(1e-50, dtype=torch.float64)}),
    "large normalizer": (LOGITS, torch.tensor([0, 0, 0, 1]), {"normalizer": 1e50}),
    "huge losses": (HUGE, torch.tensor([1, 1, 2, 1]), {}),
}


def with_gradient(x: Tensor, y: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    loss = unixent.cross_entropy(x, y, **given)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


def close(got: tuple[Tensor, ...], due: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(got, tuple(each.float() for each in due), rtol=1e-5, atol=1e-45)


@pytest.mark.parametrize("grid", [(2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_whole_ones(on_ranks, case: str, grid: tuple[int, int]) -> None:
    x, y, options = CASES[case]
    loss, gradient = with_gradient(x.double(), y, **options)

    def work(ranks):
        rows, columns = ranks.rows(4), ranks.columns(4)
        part = x[rows, columns], y[rows]
        due = loss, gradient[rows, columns]
        close(with_gradient(*part, parallel=ranks.config, **options), due)
        close(unixent.value_and_grad(*part, parallel=ranks.config, **options), due)
        if case != "huge losses":
            hidden, eye = x[rows].clamp(min=-400), torch.eye(4)[columns]
            got = unixent.linear_value_and_grad(hidden, eye, y[rows], wrt="hidden", parallel=ranks.config, **options)
            torch.testing.assert_close(got[0], loss.float(), rtol=1e-5, atol=0)
            torch.testing.assert_close(got[1], gradient[rows].float(), rtol=1e-5, atol=1e-45)

    on_ranks(*grid, work)


@pytest.mark.parametrize(
    "placements", [(Replicate(), Shard(1)), (Shard(0), Shard(1)), (Shard(0), Replicate())], ids=str
)
@pytest.mark.parametrize("case", CASES)
def test_those_of_a_dtensor_are_the_whole_ones(on_ranks, case: str, placements: tuple[Any, ...]) -> None:
    x, y, options = CASES[case]
    due = with_gradient(x.double(), y, **options)

    def work(ranks):
        got = with_gradient(distribute_tensor(x, ranks.mesh, placements), y, **options)
        close(tuple(each.full_tensor() for each in got), due)

    on_ranks(2, 2, work)
