"""The second derivative of the fused linear form, through that of the logits form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mindspore import Tensor
from mindspore.ops import operations as P

from unixent_mindspore.kernel import ABSENT, DTYPES
from unixent_mindspore.logits.autograd import BackwardPass
from unixent_mindspore.logits.problem import LossSpec
from unixent_mindspore.logits.reduction import Reduction


class LinearCurvature(Reduction):
    """The derivative of ``<a, dh> + <A, dW> + <b, db> + <q, dt>`` for hidden h, classifier W, bias, target, upstream.

    dh, dW, db and dt are the gradients of the loss; with G its gradient for the logits z = h W' + bias,

    .. code-block:: text

        dh = G W,  dW = G' h,  db = 1' G        so that the sum is        <G, E> + <q, dt>,    E = a W' + h A' + b

    and with H the derivative of that for z those for h and W are H W + G A and H' h + G' a; ``derivatives`` makes the
    cells of G and H. Unlike loss and gradient it holds arrays of the size of the logits, all at once.
    """

    def __init__(self, spec: LossSpec, dtype: str, derivatives: Callable[[LossSpec, str], tuple[Any, Any]]) -> None:
        logits_spec = replace(spec, linear=False, dtypes=(dtype, None, None, *spec.dtypes[3:]))
        super().__init__(logits_spec, dtype)
        self.gradient, self.curvature = derivatives(logits_spec, dtype)
        self.has_bias, self.absent = spec.dtypes[2] is not None, ABSENT
        self.dtypes = tuple(DTYPES[name or "float32"] for name in spec.dtypes[:3])
        self.matmul, self.matmul_bt, self.matmul_at = P.MatMul(), P.MatMul(transpose_b=True), P.MatMul(transpose_a=True)

    def flat(self, value: Tensor) -> Tensor:
        return self.reshape(self.cast(value, self.dtype), (-1, value.shape[-1]))

    def construct(self, dout: Any, *inputs: Tensor) -> tuple[Any, ...]:
        hidden, classifier, bias, target, weight, mask, normalizer, ids, selected, grad_output = inputs
        h, w, a, w_tangent = self.flat(hidden), self.flat(classifier), self.flat(dout[0]), self.flat(dout[1])
        shape = (*hidden.shape[:-1], self.num_classes)
        logits = self.matmul_bt(h, w)
        if self.has_bias:
            logits = logits + self.cast(bias, self.dtype)
        logits = self.reshape(logits, shape)
        # 0 times a NaN in an inactive position would reach the classifier, and one in the classifier hidden.
        position_weight = self.positions(logits, target, weight, mask)[1]
        inactive = self.equal(self.reshape(position_weight, (-1, 1)), self.zero)
        h, a = self.where(inactive, self.zero, h), self.where(inactive, self.zero, a)
        logits_tangent = self.matmul_bt(a, w) + self.matmul_bt(h, w_tangent)
        if self.has_bias:
            logits_tangent = logits_tangent + self.cast(dout[2], self.dtype)
        logits_tangent = self.reshape(logits_tangent, shape)
        rest = (self.absent, self.absent, target, weight, mask, normalizer, ids, selected, grad_output)
        grad = self.flat(self.gradient(logits, *rest)[0])
        hvp, target_hvp, change = self.curvature(logits_tangent, dout[3], logits, *rest)
        hvp = self.flat(hvp)
        hidden_hvp = self.where(inactive, self.zero, self.matmul(hvp, w) + self.matmul(grad, w_tangent))
        classifier_hvp = self.matmul_at(hvp, h) + self.matmul_at(grad, a)
        bias_hvp = self.zeros(bias)
        if self.has_bias:
            bias_hvp = self.reshape(self.reduce_sum(hvp, 0), bias.shape)
        return (
            self.curvature.last(self.cast(self.reshape(hidden_hvp, hidden.shape), self.dtypes[0])),
            self.curvature.last(self.cast(classifier_hvp, self.dtypes[1])),
            self.curvature.last(self.cast(bias_hvp, self.dtypes[2])),
            target_hvp,
            change,
        )


class LinearGradient(BackwardPass):
    """The backward pass of the fused linear form."""

    def backward(self, inputs: tuple[Tensor, ...], grad_output: Tensor, dout: Any) -> Any:
        return self.curvature(dout, *inputs, grad_output)
