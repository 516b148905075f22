"""A problem that is split over processes, made ready and sent the way that suits how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unixent.errors import BackendError
from unixent.protocol import LinearProblem, LossProblem, LossTerms, Problem
from unixent_torch import compat
from unixent_torch.collectives import Parts, all_reduce, is_dtensor, total
from unixent_torch.linear.autograd import rounded
from unixent_torch.linear.problem import PreparedLinear
from unixent_torch.logits.problem import Prepared, PreparedLogits
from unixent_torch.logits.reduction import factor, reduce, spread
from unixent_torch.vocab_parallel.autograd import SplitCall, apply_split
from unixent_torch.vocab_parallel.linear import apply_split_linear, solve_split_linear
from unixent_torch.vocab_parallel.statistics import solve_split, split_gradients
from unixent_torch.vocab_parallel.traced import TracedSplit


class _OverTokens(Prepared):
    """Mixed in before a form of the loss: its positions are some of those that the processes hold together."""

    def __init__(self, *problem: Any, parts: Parts) -> None:
        self.parts = parts
        super().__init__(*problem)

    def total(self) -> Tensor:
        return all_reduce(super().total(), self.parts.token, "sum")

    def counted(self) -> Tensor | float:
        return self.total() if self.parts.token else super().counted()

    def _over_all(self, loss: Tensor) -> Tensor:
        return loss if self.call.kept else total(loss, self.parts.token)

    def loss(self) -> Tensor:
        return self._over_all(super().loss())

    def loss_and_grads(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss, grads = super().loss_and_grads(grad_output, wrt)
        return self._over_all(loss), grads


class _OverClasses(PreparedLogits):
    """A problem whose classes are split."""

    parts: Parts

    def loss(self) -> Tensor:
        how = SplitCall(self.call, self.parts)
        if compat.is_traced():
            loss: Tensor = TracedSplit.apply(*self.operands, self.denominator, how)
            return loss
        self._refuse_nested()
        return apply_split(self.operands, self.denominator, how)

    def loss_and_grads(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not compat.is_traced() and compat.transforms_active():
            raise BackendError(
                "parallel: value_and_grad of a loss whose classes are split goes through no transform of torch.func; "
                "transform cross_entropy instead"
            )
        spec = self.call.spec
        f = spread(factor(self.upstream(grad_output), self.denominator, self.call), self.operands[0].shape[:-1])
        with torch.no_grad():
            losses, found = solve_split(*self.operands, spec, self.parts)
            grads = split_gradients(*self.operands, f, found, spec, self.parts, wrt)
            return reduce(losses, self.denominator, self.call), grads

    def _refuse_nested(self) -> None:
        if self.composed:
            raise BackendError(
                "parallel: a loss whose classes are split goes through one forward-mode derivative, and not through "
                "forward mode inside forward mode or functionalize"
            )


class TokenLogits(_OverTokens, PreparedLogits):
    """Logits whose positions are split."""


class ClassLogits(_OverTokens, _OverClasses):
    """Logits whose classes are split, and perhaps their positions."""


class TokenLinear(_OverTokens, PreparedLinear):
    """Hidden states whose positions are split."""


class _OverLinearClasses(PreparedLinear):
    """A fused linear problem whose classifier is split by classes."""

    parts: Parts

    def loss(self) -> Tensor:
        self._refuse_compiled()
        return apply_split_linear(self.operands, self.denominator, self.how, self.parts)

    def loss_and_grads(self, grad_output: Tensor | None, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._refuse_compiled()
        f = spread(factor(self.upstream(grad_output), self.denominator, self.call), self.operands.hidden.shape[:-1])
        with torch.no_grad():
            losses, grads, _ = solve_split_linear(self.operands, f, self.how.spec, self.parts, wrt)
            return reduce(losses, self.denominator, self.call), rounded(wrt, grads, self.operands)

    def _refuse_compiled(self) -> None:
        if compat.is_traced() or compat.transforms_active():
            raise BackendError(
                "parallel: the fused linear form with its classifier split runs eagerly; expected neither a compiler "
                "nor a transform of torch.func around it (torch.compiler.disable keeps it out of a compiled program)"
            )


class ClassLinear(_OverTokens, _OverLinearClasses):
    """A classifier whose classes are split, and hidden states whose positions may be."""


def cross_entropy(problem: Problem) -> Tensor | LossTerms:
    """`unixent.protocol.Backend.cross_entropy` of this process."""
    if is_dtensor(problem.logits):
        local, parts, layout = _dtensor().localize(problem)
        return _finished(_logits(local, parts), problem.return_terms, layout.wrap)
    return _finished(_logits(problem, _parts(problem)), problem.return_terms)


def value_and_grad(
    problem: Problem, grad_output: Tensor | None, wrt: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`unixent.protocol.Backend.value_and_grad` of this process."""
    if is_dtensor(problem.logits):
        local, parts, layout = _dtensor().localize(problem)
        found = _logits(local, parts)
        loss, grads = found.loss_and_grads(layout.upstream(grad_output), wrt)
        moved = (grad.movedim(-1, problem.axis) for grad in grads)
        return layout.wrap(found.finish(loss)), tuple(_dtensor().wrap_like(grad, problem.logits) for grad in moved)
    found = _logits(problem, _parts(problem))
    loss, grads = found.loss_and_grads(grad_output, wrt)
    return found.finish(loss), tuple(grad.movedim(-1, problem.axis) for grad in grads)


def linear_cross_entropy(problem: LinearProblem) -> Tensor | LossTerms:
    """`unixent.protocol.Backend.linear_cross_entropy` of this process."""
    if problem.sharding is None or is_dtensor(problem.hidden):
        local, parts, layout = _dtensor().localize_linear(problem)
        return _finished(_linear(local, parts), problem.return_terms, layout.wrap)
    return _finished(_linear(problem, _parts(problem)), problem.return_terms)


def linear_value_and_grad(
    problem: LinearProblem, grad_output: Tensor | None, wrt: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`unixent.protocol.Backend.linear_value_and_grad` of this process."""
    if problem.sharding is None or is_dtensor(problem.hidden):
        local, parts, layout = _dtensor().localize_linear(problem)
        found = _linear(local, parts)
        loss, grads = found.loss_and_grads(layout.upstream(grad_output), wrt)
        return layout.wrap(found.finish(loss)), _dtensor().wrap_linear(problem, layout, wrt, grads)
    found = _linear(problem, _parts(problem))
    loss, grads = found.loss_and_grads(grad_output, wrt)
    return found.finish(loss), grads


def _dtensor() -> Any:
    from unixent_torch.vocab_parallel import dtensor as found  # slow to import, and there where a DTensor is

    return found


def _parts(problem: LossProblem) -> Parts:
    assert problem.sharding is not None
    return Parts.of(problem.sharding)


def _logits(problem: Problem, parts: Parts) -> Prepared:
    return ClassLogits(problem, parts=parts) if parts.model else TokenLogits(problem, parts=parts)


def _linear(problem: LinearProblem, parts: Parts) -> Prepared:
    return ClassLinear(problem, parts=parts) if parts.model else TokenLinear(problem, parts=parts)


def _finished(
    found: Prepared, terms: bool, wrap: Callable[[Tensor], Tensor] = lambda value: value
) -> Tensor | LossTerms:
    loss = wrap(found.finish(found.loss()))
    return LossTerms(loss, wrap(found.finish(found.total()))) if terms else loss
