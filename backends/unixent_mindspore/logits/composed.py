"""The loss and its gradient in MindSpore primitives: what each position weighs, the kernel's pass, the reduction."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from unixent_mindspore.kernel import ABSENT, row_losses
from unixent_mindspore.logits.problem import LossSpec
from unixent_mindspore.logits.reduction import Reduction


class ComposedLoss(Reduction):
    """The forward pass: `INPUTS` -> loss, or the two terms."""

    def __init__(self, spec: LossSpec, dtype: str) -> None:
        super().__init__(spec, dtype)
        self.row_losses, self.absent = row_losses(spec.kernel(dtype)), ABSENT

    def construct(self, *inputs: Tensor) -> Any:
        logits, _, _, target, weight, mask, normalizer, _, _ = inputs
        target, position_weight, denominators = self.positions(logits, target, weight, mask)
        losses, _ = self.row_losses(logits, target, weight, position_weight, self.absent)
        return self.reduced(losses, denominators, normalizer)


class ComposedGradient(Reduction):
    """The backward pass: `INPUTS` and the upstream gradient -> the gradients of the first four."""

    def __init__(self, spec: LossSpec, dtype: str) -> None:
        super().__init__(spec, dtype)
        self.row_losses = row_losses(spec.kernel(dtype), spec.wrt_names)

    def construct(self, *inputs: Tensor) -> Any:
        logits, classifier, bias, target, weight, mask, normalizer, _, _, grad_output = inputs
        kernel_target, position_weight, denominators = self.positions(logits, target, weight, mask)
        grad_scale = self.grad_scale(position_weight, denominators, normalizer, grad_output)
        _, grads = self.row_losses(logits, kernel_target, weight, position_weight, grad_scale)
        target_grad = self.zeros(target) if self.indexed else grads[1]
        return grads[0], self.zeros(classifier), self.zeros(bias), target_grad
