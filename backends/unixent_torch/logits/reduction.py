"""From the losses of the positions to the result, and back: reductions and what they divide by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unixent.semantics import grad_scale, mean_of
from unixent_torch.kernel.spec import KernelSpec

Denominator: TypeAlias = "Tensor | float | None"


@dataclass(frozen=True, slots=True)
class LossSpec:
    """The static side of a call.

    Attributes:
        kernel: that of the pass over the logits.
        kept_axes: number of leading axes of P that stay; the loss is summed over the others and divided by a
            denominator.
        empty: what a mean with the denominator 0 is.
    """

    kernel: KernelSpec
    kept_axes: int
    empty: float


def reduce(losses: Tensor, denominator: Denominator, spec: LossSpec) -> Tensor:
    """Sum over all but the kept axes, divided by the denominator."""
    kept = spec.kept_axes
    total = losses.sum(tuple(range(kept, losses.ndim))) if kept < losses.ndim else losses
    if denominator is None:
        return total
    return mean_of(torch, total, denominator, spec.empty, host=isinstance(denominator, float))


def grad_scale_of(grad_output: Tensor | float, denominator: Denominator, spec: LossSpec) -> Any:
    """What the derivatives of the losses are multiplied with: of the shape of the kept axes, or a number."""
    if denominator is None:
        return grad_output
    if isinstance(denominator, float):
        return grad_output / denominator if denominator else grad_output * spec.empty
    return grad_scale(torch, grad_output, denominator, spec.empty)


def expand_to(kept: Tensor, shape: torch.Size) -> Tensor:
    """Kept axes expanded over all of P."""
    return kept.reshape(kept.shape + (1,) * (len(shape) - kept.ndim)).expand(shape)
