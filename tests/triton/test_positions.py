"""What there is one of per position, beside the composed form, under Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import unixent
from unixent_torch.kernel import triton
from unixent_torch.kernel.triton import positions

C = 7
TARGETS = {
    torch.int64: [0, 6, -100, 7, -1, 2**40, 3, -(2**63), 3],
    torch.int32: [0, 6, -100, 7, -1, 2**31 - 1, 3, 1, 3],
    torch.int8: [0, 6, -100, 7, -1, 127, 3, -128, 3],
    torch.uint8: [0, 6, 100, 7, 255, 1, 3, 2, 3],
    torch.uint64: [0, 6, 100, 7, 2**63, 2**64 - 1, 3, 2, 3],
}


@pytest.mark.parametrize("ignore_index", [-100, 3, 255, 2**64 - 1])
@pytest.mark.parametrize("masked", [None, torch.float32, torch.float64, torch.bool], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("dtype", TARGETS, ids=str)
def test_positions_agree_with_the_composed_form(
    dtype: torch.dtype, weighted: bool, masked: torch.dtype | None, ignore_index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x = torch.tensor(TARGETS[dtype], dtype=dtype), torch.randn(9, C)
    mask = None if masked is None else torch.tensor([1, 0, 1, 1, 0, 1, 0.5, 1, 0], dtype=masked)
    weight = torch.tensor([1, 0, math.nan, 2, 3, 4, 5.0]) if weighted else None
    options = {"mask": mask, "weight": weight, "ignore_index": ignore_index, "validate": "off"}

    def call() -> tuple[Tensor, ...]:
        x.requires_grad_()
        losses = unixent.cross_entropy(x, y, reduction="none", **options)
        terms = unixent.loss_terms(x, y, **options)
        return losses, *terms, torch.autograd.grad(losses.sum(), x)[0]

    monkeypatch.setattr(triton, "DEVICES", [])
    due = call()
    monkeypatch.setattr(triton, "DEVICES", ["cpu"])
    asked = []
    monkeypatch.setattr(triton, "positions_of", lambda *operands: asked.append(1) or positions.positions_of(*operands))
    got = call()
    assert asked
    for value, expected in zip(got, due, strict=True):
        torch.testing.assert_close(value, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 5, 4096, 4097, 100_000])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_mean_is_the_sum_over_the_denominator(count: int, on_device: bool) -> None:
    losses = torch.rand(count)
    for denominator in (3.0, 0.0):
        for empty in (0.0, math.nan):
            given = torch.tensor(denominator) if on_device else denominator
            got = positions.mean(losses, given, empty)
            due = torch.tensor(empty) if denominator == 0 else (losses.double().sum() / 3).float()
            torch.testing.assert_close(got, due, equal_nan=True, rtol=2e-6, atol=0)


def test_a_mean_of_a_sum_beyond_float32_is_finite() -> None:
    losses = torch.full((5000,), 3e38)
    assert positions.mean(losses, 5000.0, math.nan).item() == pytest.approx(3e38, rel=1e-5)
    losses[7] = math.inf
    assert positions.mean(losses, 5000.0, math.nan).item() == math.inf


def test_a_loss_of_nan_shows_in_an_empty_mean() -> None:
    assert positions.mean(torch.tensor([0.0, math.nan]), 0.0, 0.0).isnan()
    assert positions.mean(torch.tensor([0.0, 1.0]), 0.0, 0.0).item() == 0
