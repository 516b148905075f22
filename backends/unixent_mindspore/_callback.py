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
        self.axis = plan.axis
        self.each = plan.each
        self.cast, self.reshape, self.zeros = P.Cast(), P.Reshape(), P.Zeros()
        self.absent = Tensor(np.zeros(1), ms.float32)

    def gather(self, item: Tensor | None) -> Tensor:
        """An argument in a dtype that NumPy knows."""
        if item is None:
            return self.absent
        if item.dtype == ms.bfloat16:
            return self.cast(item, ms.float32)
        return item

    def spread(self, logits: Array, target: Array, *sides: Array) -> list[Array | None]:
        """The arguments on the other side."""
        given = zip(sides, self.plan.present, strict=True)
        return [logits, target, *(item if there else None for item, there in given)]


class CallbackLoss(_Callback):
    """``(logits, target, weight, mask, normalizer) -> loss``"""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.terms = plan.terms
        self.mean = plan.options.reduction == "mean" and not plan.terms
        self.result = DTYPES[plan.result]
        self.nothing = Tensor(0 if plan.options.on_empty == "zero" else np.nan, self.result)
        self.where, self.equal = P.Select(), P.Equal()
        dtype = DTYPES[host_dtype(plan.result)]

        # The operator takes its number of inputs from these names.
        def run(logits: Array, target: Array, weight: Array, mask: Array, normalizer: Array) -> Any:
            arrays = self.spread(logits, target, weight, mask, normalizer)
            found = tuple(np.atleast_1d(item) for item in plan.solve(arrays))
            return found if plan.terms else found[0]

        def shape(logits: Sequence[int], *_: Any) -> Any:
            positions = (*logits[: plan.axis], *logits[plan.axis + 1 :])
            return ((1,), (1,)) if plan.terms else positions if plan.each and positions else (1,)

        self.call = ops.Custom(run, shape, lambda *_: (dtype, dtype) if plan.terms else dtype, "pyfunc")

    def construct(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None, normalizer: Tensor | None
    ) -> Any:
        shape = logits.shape[: self.axis] + logits.shape[self.axis + 1 :] if self.each else ()
        if 0 in logits.shape:
            zero = self.zeros(shape, self.result)
            if self.terms:
                return zero, zero
            if not self.mean:
                return zero
            if normalizer is None:
                return self.nothing
            return self.where(
                self.equal(normalizer, self.cast(self.zeros((), ms.float32), normalizer.dtype)), self.nothing, zero
            )
        found = self.call(
            self.gather(logits),
            self.gather(target),
            self.gather(weight),
            self.gather(mask),
            self.gather(normalizer),
        )
        if self.terms:
            return self.cast(self.reshape(found[0], ()), self.result), self.cast(
                self.reshape(found[1], ()), self.result
            )
        return self.cast(self.reshape(found, shape), self.result)


class CallbackGradient(_Callback):
    """``(logits, target, weight, mask, normalizer, upstream) -> gradient``, or two of them for probability targets"""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.dtypes = tuple(DTYPES[name] for name in plan.wrt_dtypes)
        dtypes = tuple(DTYPES[host_dtype(name)] for name in plan.wrt_dtypes)
        several = len(dtypes) > 1

        def run(logits: Array, target: Array, weight: Array, mask: Array, normalizer: Array, upstream: Array) -> Any:
            arrays = self.spread(logits, target, weight, mask, normalizer)
            upstream = np.asarray(upstream) if plan.each else np.reshape(upstream, ())
            _, found = plan.differentiate(arrays, upstream, plan.wrt)
            return found if several else found[0]

        self.several = several
        self.call = ops.Custom(
            run,
            lambda logits, *_: (logits, logits) if several else logits,
            lambda *_: dtypes if several else dtypes[0],
            "pyfunc",
        )

    def construct(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
        upstream: Tensor,
    ) -> Any:
        if 0 in logits.shape:
            if self.several:
                return self.zeros(logits.shape, self.dtypes[0]), self.zeros(logits.shape, self.dtypes[1])
            return self.zeros(logits.shape, self.dtypes[0])
        found = self.call(
            self.gather(logits),
            self.gather(target),
            self.gather(weight),
            self.gather(mask),
            self.gather(normalizer),
            self.gather(upstream),
        )
        if self.several:
            return self.cast(found[0], self.dtypes[0]), self.cast(found[1], self.dtypes[1])
        return self.cast(found, self.dtypes[0])
