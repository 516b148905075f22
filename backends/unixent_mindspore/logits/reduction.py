"""Before and after the pass, in MindSpore primitives: what each position weighs, and the reduction of its losses."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, int64

from unixent_mindspore.kernel import DTYPES
from unixent_mindspore.kernel.rows import RowArithmetic
from unixent_mindspore.logits.problem import LossSpec


def as_int64(value: int) -> int:
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

        self.ignored_index = Tensor(as_int64(options.ignore_index) if self.ignores else 0, int64)
        self.class_zero, self.end_of_classes = Tensor(0, int64), Tensor(spec.num_classes, int64)
        self.empty_mean = self.constant(0 if options.on_empty == "zero" else np.nan)
        # Of at most 2^63 losses.
        self.shrink = self.constant(2.0**-64)

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

    def denominator(self, total: Tensor, normalizer: Tensor) -> tuple[Tensor, Tensor]:
        """What a mean is divided by, 1 where it is empty; and where it is, which is decided before any rounding."""
        if self.has_normalizer:
            total = normalizer
        empty = self.equal(total, self.zeros(total))
        return self.where(empty, self.one, self.cast(total, self.dtype)), empty

    def grad_scale(
        self, position_weight: Tensor, denominators: Tensor, normalizer: Tensor, grad_output: Tensor
    ) -> Tensor:
        """What the derivative of each position's loss is multiplied by."""
        grad_output = self.cast(grad_output, self.dtype)
        if self.per_position:
            return position_weight * self.expand(grad_output, self.axis)
        if not self.mean:
            return position_weight * grad_output
        denominator, empty = self.denominator(self.sum_all(denominators), normalizer)
        return self.where(empty, self.empty_mean, position_weight * grad_output / denominator)

    def sums(self, losses: Tensor, denominators: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The numerator, the denominator, and the numerator times `shrink`, which is finite where the mean is."""
        return self.sum_all(losses), self.sum_all(denominators), self.sum_all(losses * self.shrink)

    def of_sums(self, sums: Any, normalizer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss or numerator, the denominator, and the scale of every gradient."""
        numerator, total, shrunk = sums[0], sums[1], sums[2]
        if not self.mean:
            return self.cast(numerator, self.result_dtype), self.cast(total, self.result_dtype), self.one
        denominator, empty = self.denominator(total, normalizer)
        overflows = self.equal(self.absolute(numerator), self.inf)
        mean = self.where(overflows, shrunk / denominator / self.shrink, numerator / denominator)
        # Where the weights sum to 0, a NaN stays NaN.
        empty_mean = self.logical_and(empty, self.equal(numerator, numerator))
        mean = self.where(empty_mean, self.empty_mean, mean)
        scale = self.where(empty, self.empty_mean, self.one / denominator)
        return self.cast(mean, self.result_dtype), self.cast(total, self.result_dtype), scale

    def reduced(self, losses: Tensor, denominators: Tensor, normalizer: Tensor) -> Any:
        """The loss, or the two terms."""
        if self.per_position:
            shape = losses.shape[: self.axis] + losses.shape[self.axis + 1 :]
            return self.cast(self.reshape(losses, shape), self.result_dtype)
        loss, denominator, _ = self.of_sums(self.sums(losses, denominators), normalizer)
        if self.return_terms:
            return loss, denominator
        return loss
