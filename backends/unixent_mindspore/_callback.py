"""The arithmetic on CPU in a compiled graph: the NumPy backend's, called back through ``ops.Custom``.

A callback takes tensors only, none of them empty, and returns no 0-d ones. So None travels as a placeholder, a scalar
as one element, and without a position nothing is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import operations as P

from unixent_mindspore._plan import DTYPES, Array, Plan, host_dtype


class _Callback(nn.Cell):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.axis, self.each = plan.axis, plan.each
        self.cast, self.reshape, self.zeros = P.Cast(), P.Reshape(), P.Zeros()
        self.absent = Tensor(np.zeros(1), ms.float32)

    def give(self, item: Tensor | None) -> Tensor:
        """An argument in a dtype that NumPy knows."""
        if item is None:
            return self.absent
        if item.dtype == ms.bfloat16:
            return self.cast(item, ms.float32)
        return item

    def positions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[: self.axis] + shape[self.axis + 1 :]

    def take(self, *inputs: Array) -> list[Array | None]:
        """The arguments on the other side."""
        return [None if dtype is None else item for item, dtype in zip(inputs, self.plan.dtypes, strict=True)]


class CallbackLoss(_Callback):
    """The forward pass: `INPUTS` -> loss, or the two terms."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.terms = plan.terms
        self.mean = plan.options.reduction == "mean" and not plan.terms
        self.result = DTYPES[plan.result]
        self.nothing = Tensor(0 if plan.options.on_empty == "zero" else np.nan, self.result)
        self.where, self.equal = P.Select(), P.Equal()
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
            arrays = self.take(scores, classifier, bias, target, weight, mask, normalizer)
            found = tuple(np.atleast_1d(item) for item in plan.solve(arrays))
            return found if plan.terms else found[0]

        def shape(scores: Sequence[int], *_: Any) -> Any:
            positions = self.positions(tuple(scores))
            return ((1,), (1,)) if plan.terms else positions if plan.each and positions else (1,)

        self.call = ops.Custom(run, shape, lambda *_: (dtype, dtype) if plan.terms else dtype, "pyfunc")

    def empty(self, shape: tuple[int, ...], normalizer: Tensor | None) -> Any:
        """The result without a position."""
        zero = self.zeros(shape, self.result)
        if self.terms:
            return zero, zero
        if not self.mean:
            return zero
        if normalizer is None:
            return self.nothing
        return self.where(self.equal(normalizer, self.zeros((), normalizer.dtype)), self.nothing, zero)

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
    ) -> Any:
        shape: Any = ()
        if self.each:
            shape = self.positions(scores.shape)
        if 0 in self.positions(scores.shape):
            return self.empty(shape, normalizer)
        found = self.call(
            self.give(scores),
            self.give(classifier),
            self.give(bias),
            self.give(target),
            self.give(weight),
            self.give(mask),
            self.give(normalizer),
        )
        if self.terms:
            numerator, denominator = self.reshape(found[0], ()), self.reshape(found[1], ())
            return self.cast(numerator, self.result), self.cast(denominator, self.result)
        return self.cast(self.reshape(found, shape), self.result)


class CallbackGradient(_Callback):
    """The backward pass: `INPUTS` and the upstream gradient -> the gradient, or several."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.wrt = plan.wrt
        self.dtypes = tuple(DTYPES[name] for name in plan.wrt_dtypes)
        self.count = len(plan.wrt)
        dtypes = tuple(DTYPES[host_dtype(name)] for name in plan.wrt_dtypes)

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
            upstream = np.asarray(upstream) if plan.each else np.reshape(upstream, ())
            found = plan.gradients(arrays, upstream)
            return found if len(found) > 1 else found[0]

        def shape(*shapes: Any) -> Any:
            found = tuple(tuple(shapes[i]) for i in plan.wrt)
            return found if len(found) > 1 else found[0]

        self.call = ops.Custom(run, shape, lambda *_: dtypes if len(dtypes) > 1 else dtypes[0], "pyfunc")

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
        upstream: Tensor,
    ) -> Any:
        found: Any = ()
        if 0 in self.positions(scores.shape):
            inputs: Any = (scores, classifier, bias, target)
            for i in range(self.count):
                found = found + (self.zeros(inputs[self.wrt[i]].shape, self.dtypes[i]),)  # noqa: RUF005
        else:
            called = self.call(
                self.give(scores),
                self.give(classifier),
                self.give(bias),
                self.give(target),
                self.give(weight),
                self.give(mask),
                self.give(normalizer),
                self.give(upstream),
            )
            if self.count == 1:
                return self.cast(called, self.dtypes[0])
            for i in range(self.count):
                found = found + (self.cast(called[i], self.dtypes[i]),)  # noqa: RUF005
        if self.count == 1:
            return found[0]
        return found
