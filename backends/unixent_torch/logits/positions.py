"""What is known of the positions before any logit is read: indices safe to gather with, weights, the denominator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unixent.protocol import LossProblem
from unixent_torch.kernel.rows import class_weight

_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def equals(target: Tensor, value: int) -> Tensor:
    """``target == value`` without casting ``value`` into a dtype that can't hold it."""
    limits = torch.iinfo(target.dtype)
    if not limits.min <= value <= limits.max:
        return torch.zeros_like(target, dtype=torch.bool)
    return as_index(target) == _as_int64(value)


def as_index(target: Tensor) -> Tensor:
    """``target`` as int64; what of a uint64 does not fit becomes negative, which is out of range as well."""
    return target.to(torch.int64)


def _as_int64(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def outside(target: Tensor, classes: int) -> Tensor:
    """Which indices are outside [0, C)."""
    index = as_index(target)
    return (index < 0) | (index >= classes)


def first_invalid(target: Tensor, classes: int, ignore_index: int) -> tuple[int, int] | None:
    """Flat position and value of the first index outside [0, C) that is not ``ignore_index``. Reads values."""
    if not target.numel():
        return None
    if target.dtype == torch.int64 and type(target) is Tensor and target.is_cpu:
        # What is negative is large without its sign; and of NumPy's reductions, argmax is called in the least time.
        index = target.numpy().view(np.uint64)
        if index.item(index.argmax()) < classes:
            return None
    else:
        least, most = torch.aminmax(as_index(target))
        if least.item() >= 0 and most.item() < classes:
            return None
    flat = target.reshape(-1)
    invalid = outside(flat, classes) & ~equals(flat, ignore_index)
    if not invalid.any():
        return None
    position = int(invalid.to(torch.uint8).argmax())
    value = int(as_index(flat[position]))
    return position, value + 2**64 if value < 0 and target.dtype in _UNSIGNED else value


class Positions(NamedTuple):
    """``target`` as the kernel takes it, the position weights v (None: 1), and the terms d of the
    mean's denominator (None: 1)."""

    target: Tensor
    v: Tensor | None
    d: Tensor | None

    @classmethod
    def of(cls, problem: LossProblem, target: Tensor, weight: Tensor | None, host: bool) -> Positions:
        """``target`` has its classes last; with ``host``, values may be read."""
        kind = torch.float64 if problem.acc_dtype == "float64" else torch.float32
        mask = None if problem.mask is None else problem.mask.to(kind)
        if problem.target_kind == "probability":
            return cls(target, mask, mask)
        index = as_index(target)
        if problem.all_targets_valid or (host and _all_counted(index, problem)):
            d = mask
            if weight is not None:
                own = class_weight(weight, index)
                d = own if mask is None else mask * own
            return cls(index, mask, d)
        ignored, beyond = equals(target, problem.options.ignore_index), outside(target, problem.num_classes)
        index = torch.where(beyond, 0, index)
        v = torch.where(ignored, 0, torch.ones((), dtype=kind, device=target.device) if mask is None else mask)
        d = v
        if weight is not None:
            # An ignored position has no class, so its weight is not looked at: it may be NaN.
            d = torch.where(ignored, 0, v * torch.where(beyond, 1, class_weight(weight, index)))
        return cls(index, torch.where(beyond & ~ignored, torch.nan, v), d)


def _all_counted(index: Tensor, problem: LossProblem) -> bool:
    """Whether every index is a class and none is ignored. Reads values."""
    if 0 <= problem.options.ignore_index < problem.num_classes or not index.numel():
        return False
    least, most = torch.aminmax(index)
    return bool(least.item() >= 0 and most.item() < problem.num_classes)
