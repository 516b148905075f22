"""The arithmetic of a row in MindSpore primitives.

The formulas are those of the NumPy backend: one class per position, the pivot, is left out of the shift, so that
nothing cancels. Per-position tensors keep the class axis with size 1. Nothing is gathered by an index that was not put
in range, since one that is out of range can crash a kernel; a comparison with the class numbers can't.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from mindspore import Tensor, int64, nn
from mindspore.ops import operations as P

from unixent_mindspore.kernel.spec import DTYPES, KernelSpec


@lru_cache(maxsize=4096)
def _constant(digits: str, dtype: str) -> Tensor:
    """A number as a tensor, by its hexadecimal digits, which tell 0 from -0."""
    with np.errstate(over="ignore"):
        return Tensor(np.asarray(float.fromhex(digits)).astype(dtype))


class RowArithmetic(nn.Cell):
    """Constants and primitives in ``spec.acc_dtype``, and what is made of them. Compiled graphs know tuples only."""

    # Without a state of their own, and one for all cells: a cell is made for each set of options.
    absolute, exp, log, tanh = P.Abs(), P.Exp(), P.Log(), P.Tanh()
    minimum, maximum, equal, less, is_finite = P.Minimum(), P.Maximum(), P.Equal(), P.Less(), P.IsFinite()
    logical_and, logical_or, logical_not = P.LogicalAnd(), P.LogicalOr(), P.LogicalNot()
    where, cast, reshape, expand, gather = P.Select(), P.Cast(), P.Reshape(), P.ExpandDims(), P.Gather()
    reduce_sum, reduce_max = P.ReduceSum(keep_dims=True), P.ReduceMax(keep_dims=True)
    ones, zeros = P.OnesLike(), P.ZerosLike()

    def __init__(self, spec: KernelSpec) -> None:
        super().__init__()
        self.acc_dtype, self.dtype = spec.acc_dtype, DTYPES[spec.acc_dtype]
        self.axis, self.num_classes = spec.axis, spec.num_classes
        self.indexed, self.dense_target = spec.indexed, spec.dense_target
        softcap, inverse_temperature = spec.transform
        self.has_weight, self.has_z_loss = spec.has_weight, spec.z_loss > 0
        self.has_softcap, self.has_temperature = softcap is not None, inverse_temperature != 1

        self.class_numbers = Tensor(np.arange(spec.num_classes), int64)
        self.one_minus_smoothing = self.constant(1 - spec.label_smoothing)
        self.smoothing_share = self.constant(spec.label_smoothing / spec.num_classes)
        self.two_z_loss = self.constant(2 * spec.z_loss)
        self.softcap, self.inverse_temperature = self.constant(softcap or 1), self.constant(inverse_temperature)
        self.exp_underflows = self.constant(-600 if spec.acc_dtype == "float64" else -60)
        self.nan, self.inf, self.minus_inf = self.constant(np.nan), self.constant(np.inf), self.constant(-np.inf)
        self.zero, self.one, self.two, self.half = (self.constant(value) for value in (0, 1, 2, 0.5))

        self.argmax = P.Argmax(spec.axis, int64)

    def constant(self, value: float) -> Tensor:
        return _constant(float(value).hex(), self.acc_dtype)

    def sum(self, value: Tensor) -> Tensor:
        return self.reduce_sum(value, self.axis)

    def max(self, value: Tensor) -> Tensor:
        return self.reduce_max(value, self.axis)

    def sum_all(self, value: Tensor) -> Tensor:
        return self.reshape(self.reduce_sum(value, tuple(range(value.ndim))), ())

    def along_classes(self, vector: Tensor, like: Tensor) -> Tensor:
        """A vector over the classes, shaped to broadcast against ``like``."""
        return self.reshape(vector, (1,) * self.axis + (self.num_classes,) + (1,) * (like.ndim - self.axis - 1))

    def class_weights(self, weight: Tensor, like: Tensor) -> Tensor:
        return self.along_classes(self.cast(weight, self.dtype), like)

    def times(self, coefficient: Tensor, value: Tensor) -> Tensor:
        """``coefficient * value`` with 0 * inf = 0; NaN stays NaN."""
        vanishes = self.logical_and(self.equal(coefficient, self.zero), self.equal(self.absolute(value), self.inf))
        return self.where(vanishes, self.zero, coefficient * value)

    def log1p(self, value: Tensor) -> Tensor:
        """log(1 + t) by Kahan's correction: MindSpore's CPU kernel of Log1p returns 0 for a small t."""
        rounded = self.one + value
        same = self.logical_or(self.equal(rounded, self.one), self.equal(rounded, self.inf))
        excess = self.where(same, self.one, rounded - self.one)
        return self.where(same, value, self.log(self.where(same, self.one, rounded)) * value / excess)

    def at_positions(self, value: Tensor, position_weight: Tensor) -> Tensor:
        """Exactly 0 where a position is inactive, NaN where its weight is."""
        active = self.where(self.equal(position_weight, self.zero), self.zero, value)
        return self.where(self.equal(position_weight, position_weight), active, self.nan)

    def transform(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """x' = b a tanh(x / a), infinite logits as they are, and its derivative, whose sech^2 does not cancel."""
        x, transform_grad = self.cast(logits, self.dtype), self.inverse_temperature
        if self.has_softcap:
            ratio = x / self.softcap
            w = self.exp(-self.two * self.absolute(ratio))
            transform_grad = transform_grad * (self.two * self.two * w / ((self.one + w) * (self.one + w)))
            infinite = self.equal(self.absolute(x), self.inf)
            x = self.where(infinite, x, self.softcap * self.tanh(ratio))
        if self.has_temperature:
            x = self.inverse_temperature * x
        return x, transform_grad

    def is_class(self, index: Tensor, like: Tensor) -> Tensor:
        """Where the classes are those of ``index``, one per position."""
        return self.equal(self.along_classes(self.class_numbers, like), index)

    def target_coefs(self, x: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """t_c = w_c ((1 - s) q_c + s / C), the coefficient of L_c in a position's loss."""
        if self.indexed:
            at_target = self.one_minus_smoothing + self.smoothing_share
            coefs = self.where(self.is_class(target, x), at_target, self.smoothing_share)
        else:
            coefs = self.one_minus_smoothing * self.cast(target, self.dtype) + self.smoothing_share
        if self.has_weight:
            coefs = self.times(self.class_weights(weight, x), coefs)
        return coefs

    def row_stats(self, shift: Tensor, pivot_logit: Tensor, sum_rest: Tensor) -> tuple[Tensor, ...]:
        """From the sum of exponentials: loss of the pivot, logsumexp, logsumexp - shift, p and 1 - p of the pivot, and
        what turns another class's exponential into its p."""
        bad = self.logical_or(self.equal(pivot_logit, self.inf), self.equal(shift, self.minus_inf))
        sum_rest = self.where(bad, self.nan, sum_rest)
        gap = shift - pivot_logit
        back = gap - shift
        dropped = (shift - (gap - back)) - (pivot_logit + back)
        dropped = self.where(self.is_finite(dropped), dropped, self.zero)
        far = self.less(self.zero, gap)
        down = self.minimum(gap, self.zero)
        half = self.exp(down * self.half)
        deep = self.less(down, self.exp_underflows)
        step = self.where(deep, half * half, self.exp(down))
        t = self.where(deep, (sum_rest * half) * half, sum_rest * step) * (self.one + dropped)
        u = self.exp(-self.maximum(gap, self.zero))
        sum_exp = sum_rest + u
        log_sum_exp = self.log(self.where(far, sum_exp, self.one))
        near = self.log1p(t)
        return (
            self.where(far, gap + log_sum_exp, near),
            self.where(far, shift + log_sum_exp, pivot_logit + near),
            self.where(far, log_sum_exp, near - gap),
            self.where(far, u / sum_exp, self.one / (self.one + t)),
            self.where(far, sum_rest / sum_exp, t / (self.one + t)),
            self.where(far, self.one / sum_exp, step / (self.one + t)),
        )
