"""The arithmetic in MindSpore primitives: for accelerators, and for second derivatives everywhere.

The formulas are those of the NumPy backend (`unixent_numpy._rows` derives them): one class per position, the pivot, is
left out of the shift, so that nothing cancels. Per-position tensors keep the class axis with size 1. Nothing is
gathered: an index outside [0, C) can crash a kernel, a comparison with the class numbers can't.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.ops import operations as P

from unixent_mindspore._plan import DTYPES, Plan


def _as_int64(value: int) -> int:
    """``value`` as a cast to int64 leaves it: uint64 wraps."""
    return (value + 2**63) % 2**64 - 2**63


class Arithmetic(nn.Cell):
    """Losses, gradients and curvature of one plan. ``dtype`` is that of every exp, log and sum."""

    def __init__(self, plan: Plan, dtype: str) -> None:
        super().__init__()
        options = plan.options
        self.dtype, self.axis, self.classes = DTYPES[dtype], plan.axis, plan.classes
        self.indexed, self.mixed = plan.kind == "index", plan.kind != "index" or options.label_smoothing > 0
        self.squared, self.capped = options.z_loss > 0, options.softcap is not None
        self.terms = plan.terms
        self.weighted, self.masked, self.divided = (plan.dtypes[i] is not None for i in (4, 5, 6))
        self.mean = options.reduction == "mean" and not plan.terms
        self.each = options.reduction == "none" and not plan.terms
        # An ignore_index that the target's dtype can't hold matches nothing.
        limits = np.iinfo(str(plan.dtypes[3])) if self.indexed else None
        self.ignores = limits is not None and bool(limits.min <= options.ignore_index <= limits.max)

        self.ignored_index = Tensor(_as_int64(options.ignore_index) if self.ignores else 0, ms.int64)
        self.numbers = Tensor(np.arange(plan.classes), ms.int64)
        self.first, self.behind = Tensor(0, ms.int64), Tensor(plan.classes, ms.int64)
        self.share = self.constant(1 - options.label_smoothing)
        self.base = self.constant(options.label_smoothing / plan.classes)
        self.z2 = self.constant(2 * options.z_loss)
        self.softcap = self.constant(options.softcap or 1)
        self.empty = self.constant(0 if options.on_empty == "zero" else np.nan)
        self.deep = self.constant(-600 if dtype == "float64" else -60)
        self.nan, self.high, self.low = self.constant(np.nan), self.constant(np.inf), self.constant(-np.inf)
        self.zero, self.one, self.two, self.half = (self.constant(value) for value in (0, 1, 2, 0.5))

        self.absolute, self.exp, self.log, self.tanh = P.Abs(), P.Exp(), P.Log(), P.Tanh()
        self.minimum, self.maximum, self.argmax = P.Minimum(), P.Maximum(), P.Argmax(plan.axis, ms.int64)
        self.equal, self.less, self.finite = P.Equal(), P.Less(), P.IsFinite()
        self.both, self.either, self.negate = P.LogicalAnd(), P.LogicalOr(), P.LogicalNot()
        self.where, self.cast, self.reshape, self.expand = P.Select(), P.Cast(), P.Reshape(), P.ExpandDims()
        self.total, self.top, self.ones = P.ReduceSum(keep_dims=True), P.ReduceMax(keep_dims=True), P.OnesLike()

    def constant(self, value: Any) -> Tensor:
        return Tensor(np.asarray(value, np.float64)).astype(self.dtype)

    def sum(self, value: Tensor) -> Tensor:
        return self.total(value, self.axis)

    def sum_all(self, value: Tensor) -> Tensor:
        return self.reshape(self.total(value, tuple(range(value.ndim))), ())

    def along(self, vector: Tensor, like: Tensor) -> Tensor:
        """A vector over the classes, shaped to broadcast against ``like``."""
        return self.reshape(vector, (1,) * self.axis + (self.classes,) + (1,) * (like.ndim - self.axis - 1))

    def times(self, coefficient: Tensor, value: Tensor) -> Tensor:
        """``coefficient * value`` with 0 * inf = 0; NaN stays NaN."""
        nothing = self.both(self.equal(coefficient, self.zero), self.equal(self.absolute(value), self.high))
        return self.where(nothing, self.zero, coefficient * value)

    def log1p(self, value: Tensor) -> Tensor:
        """log(1 + t) by Kahan's correction: MindSpore's CPU kernel of Log1p returns 0 for a small t."""
        rounded = self.one + value
        same = self.either(self.equal(rounded, self.one), self.equal(rounded, self.high))
        excess = self.where(same, self.one, rounded - self.one)
        return self.where(same, value, self.log(self.where(same, self.one, rounded)) * value / excess)

    def positions(self, x: Tensor, target: Tensor, weight: Tensor, mask: Tensor) -> tuple[Any, ...]:
        """Per position: weight v, denominator d, whether the index is invalid; and where each class is the target's."""
        v = self.ones(self.sum(x))
        if self.masked:
            v = self.cast(self.expand(mask, self.axis), self.dtype)
        if not self.indexed:
            return v, v, self.less(v, self.low), None
        index = self.cast(self.expand(target, self.axis), ms.int64)
        outside = self.either(self.less(index, self.first), self.negate(self.less(index, self.behind)))
        hot = self.equal(self.along(self.numbers, x), self.where(outside, self.first, index))
        d = v
        if self.weighted:
            own = self.sum(self.where(hot, self.along(self.cast(weight, self.dtype), x), self.zero))
            d = v * self.where(outside, self.one, own)
        if self.ignores:
            ignored = self.equal(index, self.ignored_index)
            v, d = self.where(ignored, self.zero, v), self.where(ignored, self.zero, d)
            outside = self.both(outside, self.negate(ignored))
        return v, d, outside, hot

    def coefficients(self, x: Tensor, target: Tensor, weight: Tensor, hot: Tensor | None) -> Tensor:
        """t_c, the coefficient of L_c in a position's loss."""
        if self.indexed:
            t = self.where(hot, self.share + self.base, self.base)
        else:
            t = self.share * self.cast(target, self.dtype) + self.base
        if self.weighted:
            t = self.times(self.along(self.cast(weight, self.dtype), x), t)
        return t

    def statistics(self, x: Tensor, hot: Tensor) -> tuple[Tensor, ...]:
        """With the pivot where ``hot``: L_k, lse, p_k, 1 - p_k, and p of the other classes (0 at the pivot)."""
        x_k = self.sum(self.where(hot, x, self.zero))
        others = self.where(hot, self.low, x)
        top = self.top(others, self.axis)
        shift = self.where(self.equal(top, self.low), x_k, top)
        e = self.exp(others - shift)
        loss, lse, _, p_k, q_k, scale = self.pivoted(shift, x_k, self.sum(e))
        return loss, lse, p_k, q_k, e * scale

    def pivoted(self, shift: Tensor, x_k: Tensor, rest: Tensor) -> tuple[Tensor, ...]:
        """From the sum of exponentials: L_k, lse, lse - shift, p_k, 1 - p_k, and what turns an exponential into p."""
        bad = self.either(self.equal(x_k, self.high), self.equal(shift, self.low))
        rest = self.where(bad, self.nan, rest)
        gap = shift - x_k
        back = gap - shift
        dropped = (shift - (gap - back)) - (x_k + back)
        dropped = self.where(self.finite(dropped), dropped, self.zero)
        far = self.less(self.zero, gap)
        down = self.minimum(gap, self.zero)
        half = self.exp(down * self.half)
        step = self.where(self.less(down, self.deep), half * half, self.exp(down))
        t = self.where(self.less(down, self.deep), (rest * half) * half, rest * step) * (self.one + dropped)
        u = self.exp(-self.maximum(gap, self.zero))
        total = rest + u
        log_total = self.log(self.where(far, total, self.one))
        near = self.log1p(t)
        return (
            self.where(far, gap + log_total, near),
            self.where(far, shift + log_total, x_k + near),
            self.where(far, log_total, near - gap),
            self.where(far, u / total, self.one / (self.one + t)),
            self.where(far, rest / total, t / (self.one + t)),
            self.where(far, self.one / total, step / (self.one + t)),
        )

    def cap(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The capped logits and the slope sech^2(x / a) of the cap, free of cancellation."""
        x = self.cast(logits, self.dtype)
        if not self.capped:
            return x, self.one
        x = x / self.softcap
        w = self.exp(-self.two * self.absolute(x))
        slope = self.two * self.two * w / ((self.one + w) * (self.one + w))
        return self.softcap * self.tanh(x), slope
