"""Before and after the pass, in MindSpore primitives: what each position weighs, and the reduction of its losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, int64
from mindspore.ops import operations as P

from unixent_mindspore.kernel import DTYPES
from unixent_mindspore.kernel.rows import RowArithmetic
from unixent_mindspore.logits.problem import LossSpec


def _as_int64(value: int) -> int:
    """``value`` as a cast to int64 leaves it: uint64 wraps."""
    return (value + 2**63) % 2**64 - 2**63


class Reduction(RowArithmetic):
    """Positions, denominators and sums of one `LossSpec`."""

    def __init__(self, spec: LossSpec, dtype: str) -> None:
        super().__init__(spec.kernel(dtype))
        options = spec.options
        self.return_terms, self.per_position = spec.return_terms, spec.per_position
        self.has_mask, self.has_normalizer = spec.dtypes[5] is not None, spec.dtypes[6] is not None
        self.mean = options.reduction == "mean" and not spec.return_terms
        self.result_dtype = DTYPES[spec.result_dtype]
        # An ignore_index that the target's dtype can't hold matches nothing.
        limits = np.iinfo(str(spec.dtypes[3])) if self.indexed else None
        self.ignores = limits is not None and bool(limits.min <= options.ignore_index <= limits.max)

        self.ignored_index = Tensor(_as_int64(options.ignore_index) if self.ignores else 0, int64)
        self.class_zero, self.end_of_classes = Tensor(0, int64), Tensor(spec.num_classes, int64)
        self.empty_mean = self.constant(0 if options.on_empty == "zero" else np.nan)
        self.gather = P.Gather()

    def positions(self, logits: Tensor, target: Tensor, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Per position: the target for the kernel, the position weight (NaN where out of range), the denominator."""
        position_weight = self.ones(self.sum(self.cast(logits, self.dtype)))
        if self.has_mask:
            # The mask may have size 1 along an axis of the positions.
            position_weight = position_weight * self.cast(self.expand(mask, self.axis), self.dtype)
        if not self.indexed:
            return target, position_weight, position_weight
        index = self.cast(self.expand(target, self.axis), int64)
        too_large = self.logical_not(self.less(index, self.end_of_classes))
        out_of_range = self.logical_or(self.less(index, self.class_zero), too_large)
        safe_index = self.where(out_of_range, self.class_zero, index)
        denominators = position_weight
        if self.has_weight:
            target_weight = self.gather(self.cast(weight, self.dtype), safe_index, 0)
            denominators = position_weight * self.where(out_of_range, self.one, target_weight)
        if self.ignores:
            ignored = self.equal(index, self.ignored_index)
            position_weight = self.where(ignored, self.zero, position_weight)
            denominators = self.where(ignored, self.zero, denominators)
            out_of_range = self.logical_and(out_of_range, self.logical_not(ignored))
        return safe_index, self.where(out_of_range, self.nan, position_weight), denominators

    def denominator(self, denominators: Tensor, normalizer: Tensor) -> Tensor:
        if self.has_normalizer:
            return self.cast(normalizer, self.dtype)
        return self.sum_all(denominators)

    def grad_scale(
        self, position_weight: Tensor, denominators: Tensor, normalizer: Tensor, grad_output: Tensor
    ) -> Tensor:
        """What the derivative of each position's loss is multiplied by."""
        grad_output = self.cast(grad_output, self.dtype)
        if self.per_position:
            return position_weight * self.expand(grad_output, self.axis)
        if not self.mean:
            return position_weight * grad_output
        denominator = self.denominator(denominators, normalizer)
        empty = self.equal(denominator, self.zero)
        scale = position_weight * grad_output / self.where(empty, self.one, denominator)
        return self.where(empty, self.empty_mean, scale)

    def reduced(self, losses: Tensor, denominators: Tensor, normalizer: Tensor) -> Any:
        """The loss, or the two terms."""
        if self.per_position:
            shape = losses.shape[: self.axis] + losses.shape[self.axis + 1 :]
            return self.cast(self.reshape(losses, shape), self.result_dtype)
        numerator = self.sum_all(losses)
        if self.return_terms:
            return self.cast(numerator, self.result_dtype), self.cast(self.sum_all(denominators), self.result_dtype)
        if self.mean:
            denominator = self.denominator(denominators, normalizer)
            # Where the weights sum to 0, a NaN stays NaN.
            empty = self.logical_and(self.equal(denominator, self.zero), self.equal(numerator, numerator))
            mean = numerator / self.where(empty, self.one, denominator)
            numerator = self.where(empty, self.empty_mean, mean)
        return self.cast(numerator, self.result_dtype)
