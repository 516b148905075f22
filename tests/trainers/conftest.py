"""What tests of trainers share: logits, and values with gradients of an original and of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    """Logits (3, 5, 11) in float64, of scale 4, and an index of each position."""
    return 4 * torch.randn(3, 5, 11, dtype=torch.float64), torch.randint(11, (3, 5))


def value_and_grad(function: Callable[..., Any], *arrays: Tensor) -> list[Tensor]:
    """What a function returns, and the gradients of the sum of its floating outputs, each weighted differently."""
    leaves = [array.detach().clone().requires_grad_() for array in arrays]
    returned = function(*leaves)
    outputs = list(returned) if isinstance(returned, tuple) else [returned]
    differentiable = [each for each in outputs if each is not None and each.requires_grad]
    weights = [torch.linspace(1, 2, each.numel()).reshape(each.shape).to(each.dtype) for each in differentiable]
    sum((each * weight).sum() for each, weight in zip(differentiable, weights, strict=True)).backward()
    return [*(each.detach() for each in outputs if each is not None), *(leaf.grad for leaf in leaves)]


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """``assert_same(ours, theirs, *arrays, rtol)``: values and gradients agree, relative to the largest entry."""

    def check(ours: Callable[..., Any], theirs: Callable[..., Any], *arrays: Tensor, rtol: float = 1e-12) -> None:
        actual, expected = value_and_grad(ours, *arrays), value_and_grad(theirs, *arrays)
        assert len(actual) == len(expected)
        for value, truth in zip(actual, expected, strict=True):
            assert value.shape == truth.shape
            truth = truth.double()
            torch.testing.assert_close(value.double(), truth, rtol=0, atol=rtol * float(truth.abs().max()))

    return check


@pytest.fixture
def patched() -> Iterator[Callable[[str], None]]:
    """``patched(library)``: `patch` until the end of the test."""
    from unixent_torch.trainers import patch

    undo: list[Callable[[], None]] = []
    yield lambda library: undo.append(patch(library))
    for each in reversed(undo):
        each()
