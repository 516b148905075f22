"""A call of the fused linear form: its operands, and the way that suits how torch runs it."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.protocol import LinearProblem
from unixent_torch.collectives import Groups
from unixent_torch.kernel import traced
from unixent_torch.kernel.mode import PLAIN_OPERATIONS, Mode
from unixent_torch.linear.autograd import LinearGradient, ReverseLinear, TransformedLinear, cast_like
from unixent_torch.linear.chunks import LinearOperands, LinearSpec, linear_row_losses, without_autocast
from unixent_torch.linear.traced import opaque_loss, opaque_loss_and_grads
from unixent_torch.logits.gradient import composed_vjp
from unixent_torch.logits.problem import LossCall, with_room_for_normalizer
from unixent_torch.logits.reduction import reduce


def _autocast_dtype(problem: LinearProblem) -> torch.dtype | None:
    """The dtype that autocast would multiply hidden and classifier in, where it isn't theirs already."""
    device = problem.hidden.device.type
    # The compiler of torch 2.10 and earlier stops at the question, which only "meta" would answer with no.
    compiled = torch.compiler.is_compiling() and device != "meta"
    available = problem.acc_dtype != "float64" and (compiled or torch.amp.is_autocast_available(device))
    if not (available and torch.is_autocast_enabled(device)):
        return None
    dtype: torch.dtype = torch.get_autocast_dtype(device)
    return None if problem.hidden.dtype == problem.classifier.dtype == dtype else dtype


class LinearCall(LossCall):
    """A call of the fused linear form."""

    def __init__(self, problem: LinearProblem, token_groups: Groups = ()) -> None:
        autocast_dtype = _autocast_dtype(problem)
        if problem.normalizer is not None:
            problem = with_room_for_normalizer(problem)
        hidden, classifier, bias = problem.hidden, problem.classifier, problem.bias
        super().__init__(problem, hidden, problem.target, token_groups)
        target, position_weight, _ = self.positions
        self.operands = LinearOperands(hidden, classifier, bias, target, self.weight, position_weight)
        self.linear_spec = LinearSpec(self.spec, problem.chunk, autocast_dtype)

    def _loss(self) -> Tensor:
        operands, denominator, spec, mode = self.operands, self.denominator, self.linear_spec, self.mode
        loss: Tensor
        if mode is Mode.TRACED:
            loss = opaque_loss(operands, denominator, spec)
        elif mode in PLAIN_OPERATIONS:
            loss = self._composition(operands)
        elif mode is Mode.TRANSFORMED:
            loss = TransformedLinear.apply(*operands, denominator, spec)
        elif self.is_differentiated():
            loss = ReverseLinear.apply(*operands, denominator, spec)
        else:
            loss = reduce(linear_row_losses(operands, None, spec)[0], denominator, self.spec, self._readable)
        return loss

    def is_differentiated(self) -> bool:
        """Whether autograd asks for a gradient of an operand."""
        if not torch.is_grad_enabled():
            return False
        hidden, classifier, bias, target, _, _ = self.operands
        inputs_require = hidden.requires_grad or classifier.requires_grad or target.requires_grad
        return inputs_require or (bias is not None and bias.requires_grad)

    def _composition(self, operands: LinearOperands) -> Tensor:
        hidden, classifier, bias, target, weight, position_weight = operands
        spec, kernel = self.linear_spec, self.spec.kernel
        bias = None if bias is None else bias.to(kernel.acc_dtype)
        with without_autocast(hidden.device):
            logits = torch.nn.functional.linear(spec.widen(hidden), spec.widen(classifier), bias)
        losses = traced.row_losses(logits, target, weight, position_weight, kernel)
        return reduce(losses, self.denominator, self.spec)

    def _loss_and_grads(self, grad_output: Tensor, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        operands, spec = self.operands, self.linear_spec
        if self.mode in PLAIN_OPERATIONS:

            def loss_of(*values: Tensor) -> Tensor:
                return self._composition(operands._replace(**dict(zip(wrt, values, strict=True))))

            return composed_vjp(loss_of, tuple(getattr(operands, name) for name in wrt), grad_output, self.mode)
        if self.mode is Mode.TRACED:
            with torch.no_grad():
                loss, grads = opaque_loss_and_grads(operands, self.denominator, grad_output, spec, wrt)
                return loss, cast_like(wrt, grads, operands)
        scale = self.grad_scale(grad_output)
        if self.mode is Mode.TRANSFORMED:
            grads = LinearGradient.apply(*operands, scale, spec, wrt)
            loss = TransformedLinear.apply(*operands, self.denominator, spec)
            return loss, cast_like(wrt, grads, operands)
        with torch.no_grad():
            losses, grads = linear_row_losses(operands, scale, spec, wrt)
            return reduce(losses, self.denominator, self.spec, self._readable), cast_like(wrt, grads, operands)
