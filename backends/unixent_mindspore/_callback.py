"""The arithmetic on CPU in a compiled graph: the NumPy backend's, called back through ``ops.Custom``.

A callback takes no empty tensor and returns no 0-d one: a scalar travels as one element, and without a position nothing
is called back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

from unixent_mindspore._plan import DTYPES, Array, Plan, host_dtype


class _Callback(nn.Cell):
    """What both passes share. There are no branches: in second derivatives, MindSpore loses their blocks."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.cast, self.reshape = P.Cast(), P.Reshape()
        self.taken = tuple(DTYPES[host_dtype(name or "float32")] for name in plan.dtypes)

    def take(self, *inputs: Array) -> list[Array | None]:
        """The arguments on the other side."""
        return [None if dtype is None else item for item, dtype in zip(inputs, self.plan.dtypes, strict=True)]


class CallbackLoss(_Callback):
    """The forward pass: `INPUTS` -> loss."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        # Where the shape of the result ends and goes on in that of scores.
        self.front, self.back = (plan.axis, plan.axis + 1) if plan.each else (0, 1 << 30)
        self.result = DTYPES[plan.result]
        dtype = DTYPES[host_dtype(plan.result)]

        # The operator takes its number of inputs from these names.
        def run(
            scores: Array,
            classifier: Array,
            bias: Array,
            target: Array,
            weight: Array,
            mask: Array,
            normalizer: Array,
        ) -> Any:
            found = plan.solve(self.take(scores, classifier, bias, target, weight, mask, normalizer))
            return tuple(map(np.atleast_1d, found)) if plan.terms else np.atleast_1d(found[0])

        def shape(scores: Sequence[int], *_: Any) -> Any:
            positions = (*scores[: self.front], *scores[self.back :]) or (1,)
            return (positions, positions) if plan.terms else positions

        self.call = ops.Custom(run, shape, lambda *_: (dtype, dtype) if plan.terms else dtype, "pyfunc")

    def called(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
    ) -> Any:
        return self.call(
            self.cast(scores, self.taken[0]),
            self.cast(classifier, self.taken[1]),
            self.cast(bias, self.taken[2]),
            self.cast(target, self.taken[3]),
            self.cast(weight, self.taken[4]),
            self.cast(mask, self.taken[5]),
            self.cast(normalizer, self.taken[6]),
        )

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
        found = self.called(scores, classifier, bias, target, weight, mask, normalizer)
        return self.cast(self.reshape(found, scores.shape[: self.front] + scores.shape[self.back :]), self.result)


class CallbackTerms(CallbackLoss):
    """The forward pass: `INPUTS` -> numerator and denominator."""

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
        numerator, denominator = self.called(scores, classifier, bias, target, weight, mask, normalizer)
        return (
            self.cast(self.reshape(numerator, ()), self.result),
            self.cast(self.reshape(denominator, ()), self.result),
        )


class CallbackGradient(_Callback):
    """The backward pass: `INPUTS` and the upstream gradient -> the gradients of scores, classifier, bias and target."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.upstream = DTYPES[plan.acc_dtype]
        self.dtypes = tuple(DTYPES[name or "float32"] for name in plan.dtypes[:4])

        def run(
            scores: Array,
            classifier: Array,
            bias: Array,
            target: Array,
            weight: Array,
            mask: Array,
            normalizer: Array,
            upstream: Array,
        ) -> Any:
            arrays = self.take(scores, classifier, bias, target, weight, mask, normalizer)
            found = iter(plan.gradients(arrays, np.asarray(upstream) if plan.each else np.reshape(upstream, ())))
            inputs = enumerate((scores, classifier, bias, target))
            return tuple(next(found) if i in plan.wrt else np.zeros_like(np.atleast_1d(item)) for i, item in inputs)

        def shape(*shapes: Any) -> Any:
            return tuple(tuple(item) or (1,) for item in shapes[:4])

        self.call = ops.Custom(run, shape, lambda *_: self.taken[:4], "pyfunc")

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
    ) -> Any:
        found = self.call(
            self.cast(scores, self.taken[0]),
            self.cast(classifier, self.taken[1]),
            self.cast(bias, self.taken[2]),
            self.cast(target, self.taken[3]),
            self.cast(weight, self.taken[4]),
            self.cast(mask, self.taken[5]),
            self.cast(normalizer, self.taken[6]),
            self.cast(upstream, self.upstream),
        )
        return (
            self.cast(found[0], self.dtypes[0]),
            self.cast(found[1], self.dtypes[1]),
            self.cast(found[2], self.dtypes[2]),
            self.cast(self.reshape(found[3], target.shape), self.dtypes[3]),
        )


class CallbackBoth(_Callback):
    """Both passes at once, for a loss that is one number: `INPUTS` -> loss, and its gradient for the logits."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.result = DTYPES[plan.result]

        def run(
            scores: Array,
            classifier: Array,
            bias: Array,
            target: Array,
            weight: Array,
            mask: Array,
            normalizer: Array,
        ) -> Any:
            arrays = self.take(scores, classifier, bias, target, weight, mask, normalizer)
            loss, found = plan.differentiate(arrays, None, ("logits",))
            return np.atleast_1d(loss), found[0]

        dtypes = DTYPES[host_dtype(plan.result)], self.taken[0]
        self.call = ops.Custom(run, lambda scores, *_: ((1,), tuple(scores)), lambda *_: dtypes, "pyfunc")

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
        loss, slopes = self.call(
            scores,
            self.cast(classifier, self.taken[1]),
            self.cast(bias, self.taken[2]),
            self.cast(target, self.taken[3]),
            self.cast(weight, self.taken[4]),
            self.cast(mask, self.taken[5]),
            self.cast(normalizer, self.taken[6]),
        )
        return self.cast(self.reshape(loss, ()), self.result), slopes


class VacantLoss(nn.Cell):
    """The forward pass without a position."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.axis, self.each, self.terms = plan.axis, plan.each, plan.terms
        self.mean = plan.options.reduction == "mean" and not plan.terms
        self.divided = plan.dtypes[6] is not None
        self.result = DTYPES[plan.result]
        self.zero = Tensor(0, self.result)
        self.nothing = Tensor(0 if plan.options.on_empty == "zero" else np.nan, self.result)
        self.where, self.equal, self.zeros = P.Select(), P.Equal(), P.Zeros()

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
        found: Any = self.zero
        if self.each:
            found = self.zeros(scores.shape[: self.axis] + scores.shape[self.axis + 1 :], self.result)
        if self.terms:
            found = (self.zero, self.zero)
        if self.mean:
            found = self.nothing
        if self.mean and self.divided:
            found = self.where(self.equal(normalizer, self.zeros((), normalizer.dtype)), self.nothing, self.zero)
        return found


class VacantGradient(nn.Cell):
    """The backward pass without a position."""

    def __init__(self) -> None:
        super().__init__()
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
        upstream: Tensor,
    ) -> Any:
        return self.zeros(scores), self.zeros(classifier), self.zeros(bias), self.zeros(target)
