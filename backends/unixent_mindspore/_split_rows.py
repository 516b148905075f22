"""The forward pass of a split loss in MindSpore primitives: for compiled code, and for accelerators.

The statistics, and what is reduced, are those of ``unixent_numpy._split``: with class indices the pivot is the target,
and a position costs 3 numbers on the wire (4 with smoothing); with probabilities it is the largest logit of all (7).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, int64
from mindspore.communication import get_rank
from mindspore.ops import operations as P

from unixent.errors import BackendError
from unixent_mindspore._derivatives import Derivatives
from unixent_mindspore._plan import ABSENT, DTYPES, Plan
from unixent_mindspore._reduce import Agreement, Alone, reduction
from unixent_mindspore._split import SplitLoss


class SplitForward(Derivatives):
    """`INPUTS` -> (loss or numerator, denominator, slopes of scores, classifier, bias and target)."""

    def __init__(self, plan: Plan, dtype: str, cpu: bool) -> None:
        super().__init__(plan, dtype)
        assert plan.split is not None
        group = plan.split.model_group
        rank = 0 if group is None else int(get_rank(group))
        first = plan.split.vocab_start(rank)
        self.classes = plan.split.classes_per_rank[rank]
        self.begin, self.end = first, first + self.classes
        self.numbers = Tensor(np.arange(self.begin, self.end), int64)
        self.smoothed = plan.options.label_smoothing > 0
        self.others = self.constant(plan.options.label_smoothing * (plan.classes - 1) / plan.classes)
        self.rank = self.constant(-rank)
        self.slopes_dtype = DTYPES[plan.acc_dtype]
        self.absent = ABSENT
        self.model_sum = reduction(group, "sum", dtype, cpu)
        self.model_max = reduction(group, "max", dtype, cpu)
        self.token_sum = reduction(plan.split.token_group, "sum", dtype, cpu)
        # An eager call has agreed already; on an accelerator nothing can be raised.
        facts = plan.facts if cpu else None
        self.asks = facts is not None
        self.agreement = Alone() if facts is None else Agreement(plan.split, facts)
        self.stack, self.gather, self.nothing = P.Stack(0), P.Gather(), P.Zeros()
        self.before, self.after = P.CumSum(exclusive=True), P.CumSum(exclusive=True, reverse=True)

    def here(self, weight: Tensor, x: Tensor) -> Tensor:
        """The weights of this process's classes."""
        return self.along(self.cast(weight, self.dtype)[self.begin : self.end], x)

    def base_of(self, weight: Tensor, x: Tensor) -> Tensor:
        """b_c = w_c s / C of this process's classes."""
        if self.weighted:
            return self.base * self.here(weight, x)
        return self.base

    def located(self, x: Tensor, target: Tensor, weight: Tensor, mask: Tensor) -> tuple[Any, ...]:
        """Per position: v, d, whether the index is invalid; where the pivot is, its share t_k and the others'."""
        v = self.ones(self.sum(x))
        if self.masked:
            v = self.cast(self.expand(mask, self.axis), self.dtype)
        index = self.cast(self.expand(target, self.axis), int64)
        outside = self.either(self.less(index, self.first), self.negate(self.less(index, self.behind)))
        index_or_0 = self.where(outside, self.first, index)
        hot = self.equal(self.along(self.numbers, x), index_or_0)
        d, own, others = v, self.share + self.base, self.others
        if self.weighted:
            w = self.cast(weight, self.dtype)
            at = self.gather(w, index_or_0, 0)
            d = v * self.where(outside, self.one, at)
            own = own * at
            others = self.base * self.gather(self.before(w, 0) + self.after(w, 0), index_or_0, 0)
        if self.ignores:
            ignored = self.equal(index, self.ignored_index)
            v, d = self.where(ignored, self.zero, v), self.where(ignored, self.zero, d)
            outside = self.both(outside, self.negate(ignored))
        return v, d, outside, hot, own, others

    def by_index(self, x: Tensor, target: Tensor, weight: Tensor, mask: Tensor) -> tuple[Any, ...]:
        v, d, outside, hot, own, others = self.located(x, target, weight, mask)
        x_k = self.sum(self.where(hot, x, self.zero))
        rest = self.where(hot, self.low, x)
        top = self.model_max(self.top(rest, self.axis))
        level = self.where(self.equal(top, self.low), self.zero, top)
        e = self.exp(rest - level)
        base = self.base_of(weight, x)
        if self.smoothed:
            gaps = self.sum(self.where(hot, self.zero, self.times(base + self.zero * self.ones(x), level - x)))
            parts = self.model_sum(self.stack((self.sum(e), x_k, gaps)))
        else:
            parts = self.model_sum(self.stack((self.sum(e), x_k)))
        shift = self.where(self.equal(top, self.low), parts[1], level)
        found = self.pivoted(shift, parts[1], parts[0])
        losses = self.times(own * self.ones(v), found[0])
        if self.smoothed:
            losses = losses + parts[2] + self.times(others * self.ones(v), found[2])
        return losses, found, (v, d, outside, hot, own, others), e, base, parts[1]

    def by_probability(self, x: Tensor, target: Tensor, weight: Tensor, mask: Tensor) -> tuple[Any, ...]:
        v = self.ones(self.sum(x))
        if self.masked:
            v = self.cast(self.expand(mask, self.axis), self.dtype)
        best = self.equal(self.along(self.numbers - self.begin, x), self.expand(self.argmax(x), self.axis))
        first, second = self.top(x, self.axis), self.top(self.where(best, self.low, x), self.axis)
        x_k = self.model_max(first)
        holds = self.equal(first, x_k)
        owner = self.model_max(self.where(holds, self.rank, self.low))
        mine = self.both(holds, self.equal(owner, self.rank))
        top = self.model_max(self.where(mine, second, first))
        level = self.where(self.equal(top, self.low), self.zero, top)
        hot = self.both(best, mine)
        e = self.exp(self.where(hot, self.low, x) - level)
        t = self.share * self.cast(target, self.dtype) + self.base
        if self.weighted:
            t = self.times(self.here(weight, x), t)
        spread = self.sum(self.times(t, self.where(hot, self.zero, x_k - x)))
        other, own = self.sum(self.where(hot, self.zero, t)), self.sum(self.where(hot, t, self.zero))
        parts = self.model_sum(self.stack((self.sum(e), spread, other, own)))
        found = self.pivoted(self.where(self.equal(top, self.low), x_k, level), x_k, parts[0])
        losses = parts[1] + (parts[2] + parts[3]) * found[0]
        return losses, found, (v, v, self.less(v, self.low), hot, parts[3], parts[2]), e, t, x_k

    def construct(
        self,
        logits: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
    ) -> Any:
        x, slope = self.cap(logits)
        if self.asks:
            x = x + self.agreement()
        if self.indexed:
            losses, found, at, e, t, x_k = self.by_index(x, target, weight, mask)
        else:
            losses, found, at, e, t, x_k = self.by_probability(x, target, weight, mask)
        loss, lse, _, p_k, q_k, scale = found
        v, d, outside, hot, own, others = at
        push, pull = own + others, self.zero
        if self.squared:
            losses = losses + self.half * self.z2 * lse * lse
            pull = self.z2 * lse
        losses = self.finish(v * losses, v, outside)

        if self.each:
            shape = logits.shape[: self.axis] + logits.shape[self.axis + 1 :]
            value, denominator, factor = self.cast(self.reshape(losses, shape), self.result), self.absent, v
        else:
            value, denominator, share = self.reduced(self.sum_all(losses), self.sum_all(d), normalizer)
            factor = v * share

        slopes = self.where(hot, others * p_k - own * q_k + pull * p_k, (push + pull) * scale * e - t)
        slopes = self.finish(factor * slopes * slope, v, outside)
        shares = self.absent
        if not self.indexed:
            steep = self.pull(x, self.local(weight))
            gaps = self.where(hot, self.zero, x_k - x) + loss
            shares = self.where(self.equal(steep * self.ones(x), self.zero), self.zero, steep * gaps)
            shares = self.cast(self.finish(factor * shares, v, outside), self.slopes_dtype)
        return value, denominator, self.cast(slopes, self.slopes_dtype), self.absent, self.absent, shares

    def reduced(self, numerator: Tensor, denominator: Tensor, normalizer: Tensor) -> tuple[Any, ...]:
        """The loss or numerator, the denominator, and the factor of every gradient, over the positions of all."""
        sums = self.token_sum(self.stack((numerator, denominator)))
        numerator, denominator = sums[0], sums[1]
        if self.terms:
            return self.cast(numerator, self.result), self.cast(denominator, self.result), self.one
        if not self.mean:
            return self.cast(numerator, self.result), self.absent, self.one
        if self.divided:
            denominator = self.cast(normalizer, self.dtype)
        empty = self.equal(denominator, self.zero)
        share = self.one / self.where(empty, self.one, denominator)
        nothing = self.both(empty, self.equal(numerator, numerator))
        value = self.where(nothing, self.empty, numerator * share)
        return self.cast(value, self.result), self.absent, self.where(empty, self.empty, share)

    def local(self, weight: Tensor) -> Tensor:
        if self.weighted:
            return weight[self.begin : self.end]
        return weight


class SplitVacant(SplitForward):
    """The forward pass of a process without a position, for which its token group still waits."""

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
    ) -> Any:
        slopes, shares = self.cast(self.zeros(scores), self.slopes_dtype), self.absent
        if not self.indexed:
            shares = self.cast(self.zeros(target), self.slopes_dtype)
        if self.each:
            shape = scores.shape[: self.axis] + scores.shape[self.axis + 1 :]
            value, denominator = self.nothing(shape, self.result), self.absent
            if self.asks:
                value = value + self.cast(self.agreement(), self.result)
        else:
            start = self.zero
            if self.asks:
                start = self.reshape(self.agreement(), ())
            value, denominator, _ = self.reduced(start, self.zero, normalizer)
        return value, denominator, slopes, self.absent, self.absent, shares


def split_cell(plan: Plan, dtype: str, cpu: bool) -> SplitLoss:
    """The split loss in primitives, between which MindSpore's own collectives run."""
    assert plan.split is not None
    if plan.linear:
        where = "in compiled code" if cpu else "on an accelerator"
        raise BackendError(
            f"parallel: linear_cross_entropy splits its classes eagerly on CPU with the mindspore backend; got a call "
            f"{where}, where cross_entropy(hidden @ classifier.T, ...) can be split"
        )
    if 0 in plan.split.classes_per_rank:
        raise BackendError(
            f"parallel: expected at least 1 class on every process in compiled code and on accelerators with the "
            f"mindspore backend; got {plan.split.classes_per_rank}"
        )
    return SplitLoss(plan, (SplitVacant if plan.vacant else SplitForward)(plan, dtype, cpu))
