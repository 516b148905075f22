"""From the losses of the positions to the result, and back: reductions and what they divide by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from unixent.semantics import LARGE_MEAN_SCALE, grad_scale, mean_of, mean_of_large
from unixent_torch.kernel import triton
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

    Where a sum overflows though its mean does not, the losses are scaled first: by a number that is selected, or read
    where values are ``readable``.
    """
    kept, axes = spec.kept_axes, tuple(range(spec.kept_axes, losses.ndim))
    is_mean = not kept and denominator is not None
    if is_mean and losses.device.type in triton.DEVICES and _by_triton(losses, denominator):
        return triton.mean(losses, denominator, spec.empty)
    total = losses.sum(axes) if axes else losses
    if denominator is None:
        return total
    scale: Tensor | None = None
    if readable and not kept:
        if math.isinf(total.item()) and denominator != 0:
            return mean_of_large(losses, denominator, torch.sum).to(total.dtype)
    elif axes:
        scale = torch.where(total.detach().isinf(), LARGE_MEAN_SCALE, torch.ones_like(total))
        total = (losses * expand_to(scale, losses.shape)).sum(axes)
    on_host = isinstance(denominator, float)
    mean: Tensor = mean_of(torch, total, denominator, spec.empty, on_host).to(total.dtype)
    return mean if scale is None else mean / scale


def _by_triton(losses: Tensor, denominator: Denominator) -> bool:
    if torch.is_grad_enabled() and losses.requires_grad:
        return False
    return triton.takes_positions(losses.dtype, losses, denominator if isinstance(denominator, Tensor) else None)


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
