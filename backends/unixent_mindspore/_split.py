"""A loss split over processes: its gradient is formed with it, so that the backward pass communicates nothing.

Never is a collective differentiated: MindSpore would multiply the gradient by the size of the group. The forward pass
returns ``(loss or numerator, denominator, slopes of scores, classifier, bias and target)``, ``ABSENT`` for what there
is not; the slopes are those of the global loss, in the accumulation dtype, and the backward pass scales them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore.ops import operations as P

from unixent_mindspore._eager import arrays_of, from_host
from unixent_mindspore._plan import ABSENT, DTYPES, Array, Plan

ONE_DERIVATIVE = (
    "unixent: expected one derivative of a loss that is split over processes on the mindspore backend; got a second "
    "one or forward mode"
)


def form(plan: Plan, arrays: list[Array | None]) -> tuple[Array, ...]:
    """The forward pass on NumPy arrays in the order of `INPUTS`."""
    wide = list(arrays)
    for i in plan.wrt:
        # A half-precision gradient must meet its upstream gradient (a loss scale, say) before it is rounded.
        wide[i] = np.asarray(arrays[i]).astype(plan.acc_dtype, copy=False)
    loss, found = plan.differentiate(wide, None, tuple(map(plan.name, plan.wrt)))
    slopes = dict(zip(plan.wrt, found, strict=True))
    pair = loss if plan.terms else (loss, np.zeros(1, np.float32))
    return (*pair, *(slopes.get(i, np.zeros(1, np.float32)) for i in range(4)))


def eager_split(plan: Plan) -> Callable[..., Any]:
    """The forward pass on eager tensors."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        loss, denominator, *slopes = form(plan, arrays_of(plan, inputs))
        return (
            from_host(loss, plan.result),
            from_host(denominator, plan.result) if plan.terms else ABSENT,
            *(Tensor.from_numpy(item) for item in slopes),
        )

    return run


class SplitGradient(nn.Cell):
    """The backward pass: slopes and upstream gradient -> the gradients of scores, classifier, bias and target."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.axis, self.each = plan.axis, plan.each
        self.dtypes = tuple(DTYPES[str(plan.dtypes[i])] if i in plan.wrt else None for i in range(4))
        self.cast, self.expand, self.zeros = P.Cast(), P.ExpandDims(), P.ZerosLike()
        self.equal, self.where = P.Equal(), P.Select()

    def scaled(self, slopes: Tensor, upstream: Tensor, like: Tensor, dtype: Any) -> Tensor:
        if dtype is None:
            return self.zeros(like)
        product = slopes * self.cast(upstream, slopes.dtype)
        # Nothing comes from a position that does not count, not even 0 times a NaN.
        zeros = self.zeros(slopes)
        return self.cast(self.where(self.equal(slopes, zeros), zeros, product), dtype)

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        slopes: Any,
        upstream: Tensor,
    ) -> Any:
        if self.each:
            upstream = self.expand(upstream, self.axis)
        return (
            self.scaled(slopes[0], upstream, scores, self.dtypes[0]),
            self.scaled(slopes[1], upstream, classifier, self.dtypes[1]),
            self.scaled(slopes[2], upstream, bias, self.dtypes[2]),
            self.scaled(slopes[3], upstream, target, self.dtypes[3]),
        )

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        slopes: Any,
        upstream: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        raise NotImplementedError(ONE_DERIVATIVE)


class SplitBoth(nn.Cell):
    """The forward pass; only the loss is differentiable."""

    def __init__(self, forward: Any, gradient: SplitGradient) -> None:
        super().__init__()
        self.forward, self.gradient = forward, gradient
        self.zeros = P.ZerosLike()

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
        return self.forward(scores, classifier, bias, target, weight, mask, normalizer)

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        found = self.gradient(scores, classifier, bias, target, (out[2], out[3], out[4], out[5]), dout[0])
        return (
            found[0],
            found[1],
            found[2],
            found[3],
            self.zeros(weight),
            self.zeros(mask),
            self.zeros(normalizer),
        )


class SplitLoss(nn.Cell):
    """The loss, or the two terms, of `SplitBoth`."""

    def __init__(self, plan: Plan, forward: Any) -> None:
        super().__init__()
        self.scale = SplitGradient(plan)
        self.both = SplitBoth(forward, self.scale)
        self.terms = plan.terms

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
        found = self.both(scores, classifier, bias, target, weight, mask, normalizer)
        if self.terms:
            return found[0], found[1]
        return found[0]


class SplitPull(nn.Cell):
    """The loss, and the gradients of scores, classifier, bias and target."""

    def __init__(self, cell: SplitLoss) -> None:
        super().__init__()
        self.both, self.scale, self.ones = cell.both, cell.scale, P.OnesLike()

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor | None,
    ) -> Any:
        found = self.both(scores, classifier, bias, target, weight, mask, normalizer)
        if upstream is None:
            upstream = self.ones(found[0])
        slopes = (found[2], found[3], found[4], found[5])
        return found[0], self.scale(scores, classifier, bias, target, slopes, upstream)
