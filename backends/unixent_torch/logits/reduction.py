"""From the losses of the positions to the result, and back: reductions and what they divide by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unixent.semantics import grad_scale, mean_of, mean_of_large
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


def reduce(losses: Tensor, denominator: Denominator, spec: LossSpec, readable: bool = False) -> Tensor:
    """Sum over all but the kept axes, divided by the denominator.

    Where values are ``readable``, a sum that overflows though its mean does not is formed anew.
    """
    kept = spec.kept_axes
    total = losses.sum(tuple(range(kept, losses.ndim))) if kept < losses.ndim else losses
    if denominator is None:
        return total
    if readable and not kept and math.isinf(total.item()) and denominator != 0:
        return mean_of_large(losses, denominator, torch.sum).to(total.dtype)
    if not isinstance(denominator, float):
        return mean_of(torch, total, denominator, spec.empty).to(total.dtype)
    if 0 < denominator < torch.finfo(total.dtype).tiny:
        return (total.double() / denominator).to(total.dtype)
    return mean_of(torch, total, denominator, spec.empty, host=True)


def grad_scale_of(grad_output: Tensor | float, denominator: Denominator, spec: LossSpec) -> Any:
    """What the derivatives of the losses are multiplied with: of the shape of the kept axes, or a number."""
    if denominator is None:
        return grad_output
    if isinstance(denominator, float):
        return grad_output / denominator if denominator else grad_output * spec.empty
    return grad_scale(torch, grad_output, denominator, spec.empty).to(spec.kernel.acc_dtype)


def expand_to(kept: Tensor, shape: torch.Size) -> Tensor:
    """Kept axes expanded over all of P."""
    return kept.reshape(kept.shape + (1,) * (len(shape) - kept.ndim)).expand(shape)
