"""The second derivative of the fused linear form, through that of the logits form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mindspore import Tensor
from mindspore.ops import operations as P

from unixent_mindspore._derivatives import Curvature, Derivatives, PrimitiveGradient
from unixent_mindspore._plan import ABSENT, DTYPES, Plan


class LinearCurvature(Derivatives):
    """The derivative of ``<a, dh> + <A, dW> + <b, db> + <q, dt>`` for hidden h, classifier W, bias, target, upstream.

    dh, dW, db and dt are the gradients of the loss; with G its gradient for the logits z = h W' + bias,

    .. code-block:: text

        dh = G W,  dW = G' h,  db = 1' G        so that the sum is        <G, E> + <q, dt>,    E = a W' + h A' + b

    and with H the derivative of that for z (see `Curvature`) those for h and W are H W + G A and H' h + G' a. Unlike
    loss and gradient it holds arrays of the size of the logits, all at once.
    """

    def __init__(self, plan: Plan, dtype: str) -> None:
        logits = replace(plan, linear=False, dtypes=(dtype, None, None, *plan.dtypes[3:]))
        super().__init__(logits, dtype)
        self.gradient, self.curvature = PrimitiveGradient(logits, dtype), Curvature(logits, dtype)
        self.biased, self.absent = plan.dtypes[2] is not None, ABSENT
        self.dtypes = tuple(DTYPES[name or "float32"] for name in plan.dtypes[:3])
        self.product, self.across, self.down = P.MatMul(), P.MatMul(transpose_b=True), P.MatMul(transpose_a=True)

    def flat(self, value: Tensor) -> Tensor:
        return self.reshape(self.cast(value, self.dtype), (-1, value.shape[-1]))

    def construct(
        self,
        hidden: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        dout: Any,
    ) -> tuple[Any, ...]:
        h, w, a, along_w = self.flat(hidden), self.flat(classifier), self.flat(dout[0]), self.flat(dout[1])
        full = (*hidden.shape[:-1], self.classes)
        scores = self.across(h, w)
        if self.biased:
            scores = scores + self.cast(bias, self.dtype)
        scores = self.reshape(scores, full)
        # 0 times a NaN in a switched-off position would reach the classifier, and one in the classifier hidden.
        off = self.equal(self.reshape(self.positions(scores, target, weight, mask)[0], (-1, 1)), self.zero)
        h, a = self.where(off, self.zero, h), self.where(off, self.zero, a)
        along = self.across(a, w) + self.across(h, along_w)
        if self.biased:
            along = along + self.cast(dout[2], self.dtype)
        inputs = (target, weight, mask, normalizer, upstream)
        slopes = self.gradient(scores, self.absent, self.absent, *inputs)[0]
        bend, shares, change = self.curvature(scores, *inputs, self.reshape(along, full), dout[3])
        slopes, bend = self.flat(slopes), self.flat(bend)
        along_h = self.where(off, self.zero, self.product(bend, w) + self.product(slopes, along_w))
        along_w = self.down(bend, h) + self.down(slopes, a)
        along_b = self.zeros(bias)
        if self.biased:
            along_b = self.reshape(self.total(bend, 0), bias.shape)
        return (
            self.cast(self.reshape(along_h, hidden.shape), self.dtypes[0]),
            self.cast(along_w, self.dtypes[1]),
            self.cast(along_b, self.dtypes[2]),
            shares,
            change,
        )

    def bprop(
        self,
        hidden: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        dout: Any,
        out: Any,
        back: Any,
    ) -> Any:
        """Nested ``mindspore.grad`` returns silently wrong numbers in eager mode: a third order is refused."""
        raise NotImplementedError(
            "unixent: expected at most two derivatives of a loss on the mindspore backend; got a third"
        )
