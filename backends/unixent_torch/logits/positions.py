"""What is known of the positions before any logit is read: indices safe to gather with, weights, the denominators."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unixent.protocol import LossProblem
from unixent.semantics import denominators, index_positions
from unixent_torch.kernel import triton
from unixent_torch.kernel.rows import class_weight

_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def _as_int64(ignore_index: int, dtype: torch.dtype) -> int:
    """``ignore_index`` as it looks in an int64 that was cast from ``dtype``; 2**63, which none is, where it can't."""
    limits = torch.iinfo(dtype)
    if not limits.min <= ignore_index <= limits.max:
        return 2**63
    return ignore_index - 2**64 if ignore_index >= 2**63 else ignore_index


def first_invalid(target: Tensor, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
    """Flat position and value of the first index outside [0, C) that is not ``ignore_index``. Reads values."""
    if not target.numel():
        return None
    if target.dtype == torch.int64 and type(target) is Tensor and target.is_cpu and not target.is_neg():
        # What is negative is large without its sign; and of NumPy's reductions, argmax is called in the least time.
        index = target.numpy().view(np.uint64)
        if index.item(index.argmax()) < num_classes:
            return None
    else:
        smallest, largest = torch.aminmax(target.to(torch.int64))
        if smallest.item() >= 0 and largest.item() < num_classes:
            return None
    index = target.reshape(-1).to(torch.int64)
    one, ignored = torch.ones((), device=index.device), _as_int64(ignore_index, target.dtype)
    _, _, out_of_range = index_positions(torch, index, None, one, num_classes, ignored)
    if not out_of_range.any():
        return None
    position = int(out_of_range.to(torch.uint8).argmax())
    value = int(index[position])
    return position, value + 2**64 if value < 0 and target.dtype in _UNSIGNED else value


def safe_selection(selected: Tensor, num_classes: int, ignore_index: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Class indices as int64 in [0, C), and for each 1, 0 where it is ``ignore_index``, or NaN where it is no class."""
    index = selected.to(torch.int64)
    padding, outside = index == _as_int64(ignore_index, selected.dtype), (index < 0) | (index >= num_classes)
    one = torch.ones((), dtype=dtype, device=index.device)
    return torch.where(outside, 0, index), torch.where(padding, 0, torch.where(outside, torch.nan, one))


class Positions(NamedTuple):
    """What the kernel takes of a call's positions.

    Attributes:
        target: int64 indices in [0, C), or probabilities.
        position_weight: v, or None for ones; NaN where an index is out of range, 0 where it is ignored.
        denominators: the terms d of the mean's denominator, or None for ones.
    """

    target: Tensor
    position_weight: Tensor | None
    denominators: Tensor | None

    @classmethod
    def of(
        cls, problem: LossProblem, target: Tensor, weight: Tensor | None, acc_dtype: torch.dtype, readable: bool
    ) -> Positions:
        """``target`` has its classes last; where ``readable``, values may be read."""
        if (
            target.device.type in triton.DEVICES
            and problem.target_kind == "index"
            and triton.takes_positions(acc_dtype, target, problem.mask, weight)
        ):
            ignored = _as_int64(problem.options.ignore_index, target.dtype)
            ignore_index = ignored if ignored < 2**63 else None
            return cls(*triton.positions_of(target, problem.mask, weight, problem.num_classes, ignore_index))
        mask = None if problem.mask is None else problem.mask.to(acc_dtype)
        if problem.target_kind == "probability":
            return cls(target, mask, mask)
        if problem.ids is not None:
            known = safe_selection(problem.ids, problem.num_classes, problem.options.ignore_index, acc_dtype)[1].sum(-1)
            return cls(
                target, torch.where(known.isnan(), torch.nan, torch.ones_like(known) if mask is None else mask), mask
            )
        index = target.to(torch.int64)  # what of a uint64 does not fit becomes negative, and is out of range as well
        out_of_range = None
        if not (problem.all_targets_valid or (readable and _all_valid(index, problem))):
            one = torch.ones((), dtype=acc_dtype, device=target.device)
            ignored = _as_int64(problem.options.ignore_index, target.dtype)
            index, mask, out_of_range = index_positions(torch, index, mask, one, problem.num_classes, ignored)
        terms = mask
        if weight is not None:
            terms = denominators(torch, mask, class_weight(weight, index), out_of_range)
        if out_of_range is not None:
            mask = torch.where(out_of_range, torch.nan, one if mask is None else mask)
        return cls(index, mask, terms)


def _all_valid(index: Tensor, problem: LossProblem) -> bool:
    """Whether every index is a class and none is ignored. Reads values."""
    if 0 <= problem.options.ignore_index < problem.num_classes or not index.numel():
        return False
    smallest, largest = torch.aminmax(index)
    return bool(smallest.item() >= 0 and largest.item() < problem.num_classes)
