"""A fused linear problem made ready, and sent the way that suits where it runs."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.protocol import LinearProblem
from unixent_torch import compat
from unixent_torch.kernel import traced
from unixent_torch.linear.autograd import Linear, LinearCall, LinearGradient, apply_linear, rounded
from unixent_torch.linear.chunks import LinearOperands, LinearSpec, solve_linear
from unixent_torch.linear.traced import apply_opaque, solve_opaque
from unixent_torch.logits.problem import Prepared
from unixent_torch.logits.reduction import factor, reduce, spread


def _autocast_dtype(problem: LinearProblem) -> torch.dtype | None:
    """The dtype that autocast would multiply hidden and classifier in, where it isn't theirs already."""
    device = problem.hidden.device.type
    if problem.acc_dtype == "float64" or not torch.is_autocast_enabled(device):
        return None
    dtype: torch.dtype = torch.get_autocast_dtype(device)
    return None if problem.hidden.dtype == problem.classifier.dtype == dtype else dtype


class PreparedLinear(Prepared):
    """A fused linear problem."""

    def __init__(self, problem: LinearProblem) -> None:
        super().__init__(problem, problem.hidden, problem.target)
        self.operands = LinearOperands(
            problem.hidden, problem.classifier, problem.bias, self.positions.target, self.weight, self.positions.v
        )
        self.how = LinearCall(LinearSpec(self.call.spec, problem.chunk, _autocast_dtype(problem)), self.call)
        # To a tracer, the operator has a plain backward pass and nothing else.
        self._opaque = compat.is_traced() and not (compat.transforms_active() or compat.in_forward_mode())

    def _composition(self, operands: LinearOperands) -> Tensor:
        hidden, classifier, bias, target, weight, v = operands
        spec = self.how.spec
        logits = torch.nn.functional.linear(
            spec.widen(hidden), spec.widen(classifier), None if bias is None else bias.to(spec.rows.acc_dtype)
        )
        return reduce(traced.losses(logits, target, weight, v, spec.rows), self.denominator, self.call)

    def loss(self) -> Tensor:
        if self._opaque:
            return apply_opaque(self.operands, self.denominator, self.how)
        if self.composed:
            return self._composition(self.operands)
        return apply_linear(self.operands, self.denominator, self.how)

    def loss_and_grads(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        operands, spec, upstream = self.operands, self.how.spec, self.upstream(grad_output)
        if self.composed and not self._opaque:

            def loss_of(*values: Tensor) -> Tensor:
                return self._composition(operands._replace(**dict(zip(wrt, values, strict=True))))

            loss, pull = torch.func.vjp(loss_of, *(getattr(operands, name) for name in wrt))
            return loss, pull(upstream)
        f = spread(factor(upstream, self.denominator, self.call), operands.hidden.shape[:-1])
        if compat.transforms_active():
            grads = LinearGradient.apply(*operands, f, spec, wrt)
            return Linear.apply(*operands, self.denominator, self.how), rounded(wrt, grads, operands)
        with torch.no_grad():
            solve = solve_opaque if self._opaque else solve_linear
            losses, grads = solve(operands, f, spec, wrt)
            return reduce(losses, self.denominator, self.call), rounded(wrt, grads, operands)
