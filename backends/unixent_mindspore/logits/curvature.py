"""The second derivative of the loss in MindSpore primitives: never left to MindSpore, whose own is wrong eagerly."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, nn

from unixent_mindspore.kernel import DTYPES, RowCurvature
from unixent_mindspore.logits.problem import LossSpec
from unixent_mindspore.logits.reduction import Reduction

TWO_DERIVATIVES = "unixent: expected at most two derivatives of a loss on the mindspore backend; got a third"


class TwiceDifferentiated(nn.Cell):
    """A second derivative, as it is. Nested ``mindspore.grad`` is silently wrong in eager mode: a third is refused."""

    def construct(self, value: Tensor) -> Tensor:
        return value

    def bprop(self, value: Tensor, out: Tensor, dout: Tensor) -> Any:
        raise NotImplementedError(TWO_DERIVATIVES)


class Curvature(Reduction):
    """The derivative of ``<a, d loss/d logits> + <b, d loss/d target>`` for logits, target and upstream gradient.

    The inputs are the `INPUTS` and the upstream gradient.
    """

    def __init__(self, spec: LossSpec, dtype: str) -> None:
        super().__init__(spec, dtype)
        self.rows, self.last = RowCurvature(spec.kernel(dtype)), TwiceDifferentiated()
        self.logits_dtype, self.target_dtype = DTYPES[str(spec.dtypes[0])], DTYPES[str(spec.dtypes[3])]

    def construct(self, a: Tensor, b: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, _, _, target, weight, mask, normalizer, _, _, grad_output = inputs
        target, position_weight, denominators = self.positions(logits, target, weight, mask)
        grad_scale = self.grad_scale(position_weight, denominators, normalizer, grad_output)
        unit_scale = self.grad_scale(position_weight, denominators, normalizer, self.ones(grad_output))
        logits_hvp, target_hvp, scale_grad = self.rows(logits, target, weight, position_weight, grad_scale, a, b)
        target_hvp = self.zeros(inputs[3]) if self.indexed else self.cast(target_hvp, self.target_dtype)
        scale_grad = self.at_positions(unit_scale * scale_grad, position_weight)
        scale_grad = self.reshape(scale_grad, grad_output.shape) if self.per_position else self.sum_all(scale_grad)
        return (
            self.last(self.cast(logits_hvp, self.logits_dtype)),
            self.last(target_hvp),
            self.last(self.cast(scale_grad, grad_output.dtype)),
        )
