"""What a logits-level and a fused linear problem have in common once they reach torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unixent.protocol import LossProblem, Problem
from unixent.validation import empty_mean
from unixent_torch import compat
from unixent_torch.kernel import traced
from unixent_torch.kernel.composed import solve
from unixent_torch.kernel.spec import Spec
from unixent_torch.logits.autograd import Loss, apply
from unixent_torch.logits.gradient import Gradient
from unixent_torch.logits.positions import Positions
from unixent_torch.logits.reduction import Call, Denominator, factor, reduce, spread


class Prepared:
    """A problem with its positions known and its denominator found.

    Args:
        problem: the problem.
        lead: its tensor of shape P + (C,) or P + (D,).
        target: its target, the classes last.
    """

    def __init__(self, problem: LossProblem, lead: Tensor, target: Tensor) -> None:
        options = problem.options
        self._problem = problem
        self._shape, self._device = lead.shape[:-1], lead.device
        self.composed = compat.needs_composition()
        kind = torch.float64 if problem.acc_dtype == "float64" else torch.float32
        on_cpu = lead.is_cpu
        self._host = on_cpu and not self.composed and not compat.transforms_active()
        self.weight = None if problem.weight is None else problem.weight.to(kind)
        self.positions = Positions.of(problem, target, self.weight, self._host)
        spec = Spec(kind, options.label_smoothing, options.z_loss, options.softcap, on_cpu)
        kept = len(self._shape) if options.reduction == "none" else 0
        self.call = Call(spec, kept, 0.0 if options.on_empty == "zero" else torch.nan)
        self.denominator = self._denominator()

    def total(self) -> Tensor:
        """The sum of the d_n."""
        d = self.positions.d
        if d is not None:
            return d.sum()
        return torch.full((), float(self._shape.numel()), dtype=self.call.spec.acc_dtype, device=self._device)

    def counted(self) -> Tensor | float:
        """`total`, as a number where every position counts 1."""
        return self.total() if self.positions.d is not None or self.composed else float(self._shape.numel())

    def _denominator(self) -> Denominator:
        problem = self._problem
        if problem.return_terms or problem.options.reduction != "mean":
            return None
        value: Any = problem.normalizer
        if value is None:
            value = self.counted()
        if isinstance(value, Tensor):
            value = value.to(self.call.spec.acc_dtype)
            value = value.item() if self._host else value
        if problem.check_empty and value == 0:
            raise empty_mean()
        return value

    def loss(self) -> Tensor:
        """The reduced loss in the accumulation dtype."""
        raise NotImplementedError

    def loss_and_grads(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The reduced loss, and its gradient for each of ``wrt``."""
        raise NotImplementedError

    def upstream(self, grad_output: Tensor | None) -> Tensor:
        """The upstream gradient in the accumulation dtype; ones without any."""
        kind = self.call.spec.acc_dtype
        if grad_output is None:
            return torch.ones(self._shape[: self.call.kept], dtype=kind, device=self._device)
        return grad_output.to(kind)

    def finish(self, value: Tensor) -> Tensor:
        """``value`` in the dtype of the result."""
        dtype: torch.dtype = getattr(torch, self._problem.result_dtype)
        return value if value.dtype == dtype else value.to(dtype)


class PreparedLogits(Prepared):
    """A problem with its classes last."""

    def __init__(self, problem: Problem) -> None:
        x, target = problem.logits, problem.target
        if problem.axis != x.ndim - 1:
            x = x.movedim(problem.axis, -1)
            target = target.movedim(problem.axis, -1) if problem.target_kind == "probability" else target
        super().__init__(problem, x, target)
        self.operands = (x, self.positions.target, self.weight, self.positions.v)

    def loss(self) -> Tensor:
        if self.composed:
            return reduce(traced.losses(*self.operands, self.call.spec), self.denominator, self.call)
        return apply(self.operands, self.denominator, self.call)

    def loss_and_grads(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, target, weight, v = self.operands
        spec, upstream = self.call.spec, self.upstream(grad_output)
        if self.composed:
            sources = {"logits": x, "target": target}

            def loss_of(*values: Tensor) -> Tensor:
                given = {**sources, **dict(zip(wrt, values, strict=True))}
                losses = traced.losses(given["logits"], given["target"], weight, v, spec)
                return reduce(losses, self.denominator, self.call)

            loss, pull = torch.func.vjp(loss_of, *(sources[name] for name in wrt))
            return loss, pull(upstream)
        scale = spread(factor(upstream, self.denominator, self.call), x.shape[:-1])
        if compat.transforms_active():
            grads = Gradient.apply(*self.operands, scale, spec, wrt)
            return Loss.apply(*self.operands, self.denominator, self.call), grads
        with torch.no_grad():
            losses, grads = solve(x, target, weight, v, scale, spec, wrt)
            return reduce(losses, self.denominator, self.call), grads
