"""From the losses of the positions to the result, and back: reductions and what they divide by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unixent_torch.kernel.spec import Spec

Denominator: TypeAlias = "Tensor | float | None"


@dataclass(frozen=True, slots=True)
class Call:
    """What to make of the losses of shape P.

    Attributes:
        spec: the static options.
        kept: number of leading axes of P that stay; the loss is summed over the others and divided by a denominator.
        empty: what a quotient by 0 is.
    """

    spec: Spec
    kept: int
    empty: float


def reduce(losses: Tensor, denominator: Denominator, call: Call) -> Tensor:
    """Sum over all but the kept axes, divided by the denominator."""
    total = losses.sum(tuple(range(call.kept, losses.ndim))) if call.kept < losses.ndim else losses
    if denominator is None:
        return total
    if isinstance(denominator, float):
        if denominator:
            return total / denominator
        return total * call.empty if call.empty else torch.where(torch.isnan(total), total, 0)
    none = denominator == 0
    if call.empty:  # NaN by a product, so that the gradient is NaN as well
        return total * torch.where(none, call.empty, 1) / torch.where(none, 1, denominator)
    return torch.where(none & ~torch.isnan(total), 0, total / torch.where(none, 1, denominator))


def factor(upstream: Tensor | float, denominator: Denominator, call: Call) -> Any:
    """What the derivatives of the losses are multiplied with: of the shape of the kept axes, or a number."""
    if denominator is None:
        return upstream
    if isinstance(denominator, float):
        return upstream / denominator if denominator else upstream * call.empty
    return torch.where(denominator == 0, call.empty, upstream / torch.where(denominator == 0, 1, denominator))


def spread(kept: Tensor, shape: torch.Size) -> Tensor:
    """Kept axes stretched over all of P."""
    return kept.reshape(kept.shape + (1,) * (len(shape) - kept.ndim)).expand(shape)
