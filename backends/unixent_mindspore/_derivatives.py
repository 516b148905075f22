"""Loss, gradient and curvature of a plan in MindSpore primitives, each a cell for eager and compiled code alike."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor
from mindspore.ops import operations as P

from unixent_mindspore._arithmetic import Arithmetic
from unixent_mindspore._plan import DTYPES, Plan


class Row:
    """Names for what `Derivatives.rows` returns; a compiled graph knows tuples only."""

    V, D, OUTSIDE, HOT, X, SLOPE, T, TOTAL, LOSS, LSE, P_K, Q_K, P = range(13)


class Derivatives(Arithmetic):
    """What loss, gradient and curvature share."""

    def __init__(self, plan: Plan, dtype: str) -> None:
        super().__init__(plan, dtype)
        self.result = DTYPES[plan.result]
        self.zeros = P.ZerosLike()
        self.logits_dtype, self.target_dtype = DTYPES[str(plan.dtypes[0])], DTYPES.get(str(plan.dtypes[3]))

    def rows(self, logits: Tensor, target: Tensor, weight: Tensor, mask: Tensor) -> tuple[Any, ...]:
        x, slope = self.cap(logits)
        v, d, outside, hot = self.positions(x, target, weight, mask)
        t = self.coefficients(x, target, weight, hot)
        if self.mixed:
            hot = self.equal(self.along(self.numbers, x), self.expand(self.argmax(x), self.axis))
        return (v, d, outside, hot, x, slope, t, self.sum(t), *self.statistics(x, hot))

    def denominator(self, d: Tensor, normalizer: Tensor) -> Tensor:
        if self.divided:
            return self.cast(normalizer, self.dtype)
        return self.sum_all(d)

    def factor(self, v: Tensor, d: Tensor, normalizer: Tensor, upstream: Tensor) -> Tensor:
        """What the derivative of each position's loss is multiplied with."""
        upstream = self.cast(upstream, self.dtype)
        if self.each:
            return v * self.expand(upstream, self.axis)
        if not self.mean:
            return v * upstream
        denominator = self.denominator(d, normalizer)
        empty = self.equal(denominator, self.zero)
        return self.where(empty, self.empty, v * upstream / self.where(empty, self.one, denominator))

    def finish(self, value: Tensor, v: Tensor, outside: Tensor) -> Tensor:
        """Exactly 0 where a position does not count, NaN where its index is out of range."""
        return self.where(outside, self.nan, self.where(self.equal(v, self.zero), self.zero, value))

    def gaps(self, x: Tensor, hot: Tensor) -> Tensor:
        return self.sum(self.where(hot, x, self.zero)) - x

    def slopes(self, row: tuple[Any, ...]) -> Tensor:
        """d loss / d x' of each position, before v and the reduction."""
        others = self.sum(self.where(row[Row.HOT], self.zero, row[Row.T]))
        own = others * row[Row.P_K] - row[Row.T] * row[Row.Q_K]
        slopes = self.where(row[Row.HOT], own, row[Row.TOTAL] * row[Row.P] - row[Row.T])
        if self.squared:
            slopes = slopes + self.z2 * row[Row.LSE] * self.where(row[Row.HOT], row[Row.P_K], row[Row.P])
        return slopes

    def pull(self, x: Tensor, weight: Tensor) -> Tensor:
        """d loss / d q_c per unit of L_c: (1 - s) w_c."""
        if self.weighted:
            return self.share * self.along(self.cast(weight, self.dtype), x)
        return self.share


class PrimitiveLoss(Derivatives):
    """The forward pass: `INPUTS` -> loss, or the two terms."""

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
        row = self.rows(logits, target, weight, mask)
        v, d = row[Row.V], row[Row.D]
        losses = self.times(row[Row.TOTAL], row[Row.LOSS])
        if self.mixed:
            losses = losses + self.sum(self.times(row[Row.T], self.gaps(row[Row.X], row[Row.HOT])))
        if self.squared:
            losses = losses + self.half * self.z2 * row[Row.LSE] * row[Row.LSE]
        losses = self.finish(v * losses, v, row[Row.OUTSIDE])
        if self.each:
            shape = logits.shape[: self.axis] + logits.shape[self.axis + 1 :]
            return self.cast(self.reshape(losses, shape), self.result)
        numerator = self.sum_all(losses)
        if self.terms:
            return self.cast(numerator, self.result), self.cast(self.sum_all(d), self.result)
        if self.mean:
            denominator = self.denominator(d, normalizer)
            empty = self.both(self.equal(denominator, self.zero), self.equal(numerator, numerator))
            numerator = self.where(empty, self.empty, numerator / self.where(empty, self.one, denominator))
        return self.cast(numerator, self.result)


class PrimitiveGradient(Derivatives):
    """The backward pass: `INPUTS` and the upstream gradient -> the gradients of scores, classifier, bias and target."""

    def construct(
        self,
        logits: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
    ) -> Any:
        row = self.rows(logits, target, weight, mask)
        v, x = row[Row.V], row[Row.X]
        factor = self.factor(v, row[Row.D], normalizer, upstream)
        slopes = self.finish(factor * self.slopes(row) * row[Row.SLOPE], v, row[Row.OUTSIDE])
        slopes = self.cast(slopes, self.logits_dtype)
        rest = self.zeros(classifier), self.zeros(bias)
        if self.indexed:
            return slopes, rest[0], rest[1], self.zeros(target)
        losses = self.gaps(x, row[Row.HOT]) + row[Row.LOSS]
        pull = self.pull(x, weight)
        shares = factor * self.where(self.equal(pull, self.zero), self.zero, pull * losses)
        shares = self.finish(shares, v, row[Row.OUTSIDE])
        return slopes, rest[0], rest[1], self.cast(shares, self.target_dtype)


class Curvature(Derivatives):
    r"""The derivative of ``<a, d loss/d logits> + <b, d loss/d target>`` for logits, probability targets and upstream.

    With u the upstream gradient of a position (over the denominator), T and t as in `Derivatives` and p the softmax:

    .. code-block:: text

        d / d x  =  u [T + 2 z lse] (p a - p <p, a>) + 2 z u <p, a> p  +  u (1 - s) [p <w, b> - w b]
        d / d q  =  u (1 - s) w (<p, a> - a)
        d / d u  =  <a, d loss/d x> / u + <b, d loss/d q> / u

    and, under a soft-cap, the chain rule through a tanh(x / a).
    """

    def construct(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        a: Tensor,
        b: Tensor,
    ) -> tuple[Any, ...]:
        row = self.rows(logits, target, weight, mask)
        v, x, slope, outside = row[Row.V], row[Row.X], row[Row.SLOPE], row[Row.OUTSIDE]
        scale = self.factor(v, row[Row.D], normalizer, self.ones(self.cast(upstream, self.dtype)))
        factor = self.factor(v, row[Row.D], normalizer, upstream)
        p = self.where(row[Row.HOT], row[Row.P_K], row[Row.P])
        a = self.cast(a, self.dtype)
        inner = a * slope
        mean = self.sum(self.times(p, inner))
        slopes = self.slopes(row)
        push = row[Row.TOTAL]
        if self.squared:
            push = push + self.z2 * row[Row.LSE]
        bend = push * (self.times(p, inner) - p * mean)
        if self.squared:
            bend = bend + self.z2 * mean * p
        along = self.sum(self.times(slopes, inner))
        shares = self.zeros(target)
        if not self.indexed:
            pull = self.pull(x, weight)
            b = self.cast(b, self.dtype)
            bend = bend + self.sum(pull * b) * p - pull * b
            losses = self.gaps(x, row[Row.HOT]) + row[Row.LOSS]
            along = along + self.sum(self.times(pull * b, losses))
            shares = self.cast(self.finish(factor * pull * (mean - inner), v, outside), self.target_dtype)
        bend = bend * slope
        if self.capped:
            bend = bend - self.two * x / (self.softcap * self.softcap) * slope * a * slopes
        bend = self.cast(self.finish(factor * bend, v, outside), self.logits_dtype)
        along = self.finish(scale * along, v, outside)
        if self.each:
            return bend, shares, self.cast(self.reshape(along, upstream.shape), upstream.dtype)
        return bend, shares, self.cast(self.sum_all(along), upstream.dtype)

    def bprop(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        a: Tensor,
        b: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        """Nested ``mindspore.grad`` returns silently wrong numbers in eager mode: a third order is refused."""
        raise NotImplementedError(
            "unixent: expected at most two derivatives of a loss on the mindspore backend; got a third"
        )
