"""A call as torch serves it: its operands, its positions, its denominator, and the way that suits how torch runs it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from unixent.protocol import LossProblem, LossTerms, Problem
from unixent.validation import empty_mean
from unixent_torch import compat
from unixent_torch.collectives import Groups, all_reduce, sum_over_processes
from unixent_torch.kernel import KernelSpec, row_losses, traced
from unixent_torch.kernel.mode import PLAIN_OPERATIONS, Mode, current_mode
from unixent_torch.logits.autograd import ReverseLoss, TransformedLoss
from unixent_torch.logits.constants import refuse_derivatives
from unixent_torch.logits.gradient import RowGradient, composed_vjp
from unixent_torch.logits.positions import Positions
from unixent_torch.logits.reduction import Denominator, LossSpec, expand_to, grad_scale_of, reduce
from unixent_torch.logits.traced import opaque_row_losses, takes_operator

ProblemT = TypeVar("ProblemT", bound=LossProblem)


def with_room_for_normalizer(problem: ProblemT) -> ProblemT:
    """The problem, accumulated in float64 where float32 might not hold the normalizer, or its reciprocal.

    A float64 tensor whose value can't be read may hold such a number.
    """
    normalizer: Any = problem.normalizer
    if isinstance(normalizer, Tensor):
        readable = normalizer.is_cpu and current_mode() is Mode.EAGER
        normalizer = normalizer.item() if readable else math.inf if normalizer.dtype is torch.float64 else 1.0
    known = compat.statically_known
    if known(normalizer > 2.0**64) or (known(normalizer < 2.0**-64) and known(normalizer != 0)):
        problem = replace(problem, acc_dtype="float64")
    return problem


class LossCall:
    """What the logits-level and the fused linear form have in common; each adds its operands and how it is computed.

    Args:
        problem: the problem.
        array: its tensor of shape P + (C,) or P + (D,).
        target: its target, the classes last.
        token_groups: the process groups that share the positions.
    """

    def __init__(self, problem: LossProblem, array: Tensor, target: Tensor, token_groups: Groups) -> None:
        options = problem.options
        self._problem, self._token_groups = problem, token_groups
        self._shape, self._device = array.shape[:-1], array.device
        self.mode = current_mode()
        if self.mode in (Mode.TRANSFORMED, Mode.COMPOSED):
            refuse_derivatives(problem)
        on_host = array.is_cpu
        self._readable = on_host and self.mode is Mode.EAGER
        acc_dtype = torch.float64 if problem.acc_dtype == "float64" else torch.float32
        kernel = KernelSpec(acc_dtype, options.label_smoothing, options.z_loss, problem.transform, on_host)
        kept_axes = len(self._shape) if options.reduction == "none" else 0
        self.spec = LossSpec(kernel, kept_axes, 0.0 if options.on_empty == "zero" else torch.nan)
        self.weight = None if problem.weight is None else problem.weight.to(acc_dtype)
        self.positions = Positions.of(problem, target, self.weight, acc_dtype, self._readable)
        self.denominator: Denominator = None
        if options.reduction == "mean" and not problem.return_terms:
            self.denominator = self._mean_denominator()

    def denominator_sum(self) -> Tensor:
        """The sum of the d_n of all processes."""
        d = self.positions.denominators
        if d is None and self.mode is Mode.RECORDED:  # where the shape is not a number to be recorded
            target = self.positions.target
            target = target.select(-1, 0) if target.is_floating_point() else target
            d = torch.ones_like(target, dtype=self.spec.kernel.acc_dtype)
        if d is None:
            total = torch.full((), math.prod(self._shape), dtype=self.spec.kernel.acc_dtype, device=self._device)
        else:
            total = d.sum()
        return all_reduce(total, self._token_groups, "sum") if self._token_groups else total

    def _mean_denominator(self) -> Denominator:
        value: Any = self._problem.normalizer
        if value is None:
            recorded = self.mode in PLAIN_OPERATIONS or self.mode is Mode.TRACED
            if self.positions.denominators is None and not self._token_groups and not recorded:
                value = float(self._shape.numel())
            else:
                value = self.denominator_sum()
        if isinstance(value, Tensor):
            value = float(value.item()) if self._readable else value.to(self.spec.kernel.acc_dtype)
        if self._problem.check_empty and value == 0:
            raise empty_mean()
        return value

    def result(self) -> Tensor | LossTerms:
        """The loss, or its two terms, in the dtype of the result."""
        loss = self._loss()
        if self._token_groups and not self.spec.kept_axes:
            loss = sum_over_processes(loss, self._token_groups)
        dtype = getattr(torch, self._problem.result_dtype)
        if self._problem.return_terms:
            return LossTerms(loss.to(dtype), self.denominator_sum().to(dtype))
        return loss if loss.dtype == dtype else loss.to(dtype)

    def value_and_grad(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss in the dtype of the result, and its gradient for each of ``wrt``."""
        acc_dtype = self.spec.kernel.acc_dtype
        if grad_output is None:
            grad_output = torch.ones(self._shape[: self.spec.kept_axes], dtype=acc_dtype, device=self._device)
        loss, grads = self._loss_and_grads(grad_output.to(acc_dtype), wrt)
        if self._token_groups and not self.spec.kept_axes:
            loss = sum_over_processes(loss, self._token_groups)
        return loss.to(getattr(torch, self._problem.result_dtype)), grads

    def grad_scale(self, grad_output: Tensor) -> Tensor:
        """What the derivatives of the losses are multiplied with, P."""
        return expand_to(grad_scale_of(grad_output, self.denominator, self.spec), self._shape)

    def _loss(self) -> Tensor:
        """The loss of this process's positions, reduced, in the accumulation dtype."""
        raise NotImplementedError

    def _loss_and_grads(self, grad_output: Tensor, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`_loss`, and its gradient for each of ``wrt``; ``grad_output`` is in the accumulation dtype."""
        raise NotImplementedError


class LogitsCall(LossCall):
    """A call of the logits-level form."""

    def __init__(self, problem: Problem, token_groups: Groups = ()) -> None:
        if problem.normalizer is not None:
            problem = with_room_for_normalizer(problem)
        x, target, axis = problem.logits, problem.target, problem.axis
        self._axis = axis
        if axis != x.ndim - 1:
            x = x.movedim(axis, -1)
            target = target.movedim(axis, -1) if problem.target_kind == "probability" else target
        super().__init__(problem, x, target, token_groups)
        self.operands = (x, self.positions.target, self.weight, self.positions.position_weight)

    def _loss(self) -> Tensor:
        x, target, mode = self.operands[0], self.operands[1], self.mode
        loss: Tensor
        if mode is Mode.TRANSFORMED:
            loss = TransformedLoss.apply(*self.operands, self.denominator, self.spec)
        elif mode is not Mode.EAGER:
            loss = self._composition(x, target)
        elif torch.is_grad_enabled() and (x.requires_grad or target.requires_grad):
            loss = ReverseLoss.apply(*self.operands, self.denominator, self.spec)
        else:
            losses = row_losses(*self.operands, None, self.spec.kernel)[0]
            loss = reduce(losses, self.denominator, self.spec, self._readable)
        return loss

    def _composition(self, x: Tensor, target: Tensor) -> Tensor:
        operands = (x, target, *self.operands[2:])
        if self.mode is Mode.TRACED and takes_operator(x, target, self.spec.kernel):
            losses = opaque_row_losses(*operands, None, self.spec.kernel)[0]
        else:
            losses = traced.row_losses(*operands, self.spec.kernel)
        return reduce(losses, self.denominator, self.spec)

    def value_and_grad(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss, grads = super().value_and_grad(grad_output, wrt)
        return loss, tuple(map(self.of_axis, grads))

    def of_axis(self, gradient: Tensor) -> Tensor:
        """A gradient with its classes where those of the logits are."""
        return gradient.movedim(-1, self._axis)

    def _loss_and_grads(self, grad_output: Tensor, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        operands, kernel = self.operands, self.spec.kernel
        if self.mode in PLAIN_OPERATIONS:
            sources = {"logits": operands[0], "target": operands[1]}

            def loss_of(*values: Tensor) -> Tensor:
                given = {**sources, **dict(zip(wrt, values, strict=True))}
                return self._composition(given["logits"], given["target"])

            return composed_vjp(loss_of, tuple(sources[name] for name in wrt), grad_output, self.mode)
        scale = self.grad_scale(grad_output)
        if self.mode is Mode.TRANSFORMED:
            grads = RowGradient.apply(*operands, scale, kernel, wrt)
            return TransformedLoss.apply(*operands, self.denominator, self.spec), grads
        with torch.no_grad():
            solve: Any = row_losses
            if self.mode is Mode.TRACED and takes_operator(*operands[:2], kernel):
                solve = opaque_row_losses
            elif self.mode is Mode.TRACED:
                return self._composition(*operands[:2]), traced.row_gradients(*operands, scale, kernel, wrt)
            losses, grads = solve(*operands, scale, kernel, wrt)
            return reduce(losses, self.denominator, self.spec, self._readable), grads
