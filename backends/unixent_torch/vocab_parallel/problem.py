"""A call whose positions or classes are split over processes, or that is whole over a mesh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from unixent.errors import BackendError
from unixent.protocol import LinearProblem, LossProblem, LossTerms, PositionStats, Problem, StatsProblem
from unixent_torch.collectives import LocalShard, is_dtensor
from unixent_torch.kernel.mode import Mode, current_mode, is_traced
from unixent_torch.linear.autograd import cast_like
from unixent_torch.linear.problem import LinearCall
from unixent_torch.logits.problem import LogitsCall
from unixent_torch.logits.reduction import reduce
from unixent_torch.positions.call import solve_call
from unixent_torch.positions.sparse import sparse_call
from unixent_torch.vocab_parallel.autograd import ReverseShardLoss, TracedShardLoss, TransformedShardLoss
from unixent_torch.vocab_parallel.gradients import shard_gradients
from unixent_torch.vocab_parallel.linear import ReverseShardLinear, shard_linear_losses
from unixent_torch.vocab_parallel.statistics import shard_losses


class ShardLogitsCall(LogitsCall):
    """A call of the logits-level form whose classes are split, and perhaps its positions."""

    def __init__(self, problem: Problem, shard: LocalShard) -> None:
        super().__init__(problem, shard.token_groups)
        self._shard = shard

    def _loss(self) -> Tensor:
        operands, denominator, spec, shard = self.operands, self.denominator, self.spec, self._shard
        loss: Tensor
        if is_traced():
            loss = TracedShardLoss.apply(*operands, denominator, spec, shard)
        elif self.mode is Mode.COMPOSED:
            raise _not_composed()
        elif self.mode is Mode.TRANSFORMED:
            loss = TransformedShardLoss.apply(*operands, denominator, spec, shard)[0]
        elif torch.is_grad_enabled() and (operands[0].requires_grad or operands[1].requires_grad):
            loss = ReverseShardLoss.apply(*operands, denominator, spec, shard)
        else:
            loss = reduce(shard_losses(*operands, spec.kernel, shard)[0], denominator, spec)
        return loss

    def _loss_and_grads(self, grad_output: Tensor, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.mode is not Mode.EAGER and not is_traced():
            raise BackendError(
                "parallel: value_and_grad of a loss whose classes are split goes through no transform of torch.func; "
                "transform cross_entropy instead"
            )
        operands, kernel, shard, scale = self.operands, self.spec.kernel, self._shard, self.grad_scale(grad_output)
        with torch.no_grad():
            losses, stats = shard_losses(*operands, kernel, shard)
            grads = shard_gradients(*operands, scale, stats, kernel, shard, wrt)
            return reduce(losses, self.denominator, self.spec), grads


def _not_composed() -> BackendError:
    return BackendError(
        "parallel: a loss whose classes are split goes through one forward-mode derivative, and not through "
        "forward mode inside forward mode or functionalize"
    )


class ShardLinearCall(LinearCall):
    """A call of the fused linear form whose classifier is split by classes, and perhaps its positions."""

    def __init__(self, problem: LinearProblem, shard: LocalShard) -> None:
        super().__init__(problem, shard.token_groups)
        self._shard = shard

    def _loss(self) -> Tensor:
        _check_eager(self)
        operands, denominator, spec, shard = self.operands, self.denominator, self.linear_spec, self._shard
        if self.is_differentiated():
            loss: Tensor = ReverseShardLinear.apply(*operands, denominator, spec, shard)
            return loss
        return reduce(shard_linear_losses(operands, None, spec, shard)[0], denominator, spec.loss)

    def _loss_and_grads(self, grad_output: Tensor, wrt: tuple[str, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        _check_eager(self)
        operands, scale = self.operands, self.grad_scale(grad_output)
        with torch.no_grad():
            losses, grads, _ = shard_linear_losses(operands, scale, self.linear_spec, self._shard, wrt)
            return reduce(losses, self.denominator, self.spec), cast_like(wrt, grads, operands)


def _check_mode(call: LogitsCall | LinearCall) -> None:
    """That classes that are split can be reduced as torch runs this call."""
    if isinstance(call, LinearCall):
        _check_eager(call)
    elif call.mode is Mode.COMPOSED:
        raise _not_composed()


def _check_eager(call: LinearCall) -> None:
    if call.mode is not Mode.EAGER:
        raise BackendError(
            "parallel: the fused linear form with its classifier split runs eagerly, with a plain backward pass; "
            "expected neither a compiler nor forward mode nor a transform of torch.func around it "
            "(torch.compiler.disable keeps it out of a compiled program)"
        )


def cross_entropy(problem: Problem) -> Tensor | LossTerms:
    """`unixent.protocol.Backend.cross_entropy` of this process."""
    if not is_dtensor(problem.logits):
        return _logits_call(problem, _shard_of(problem)).result()
    return _dtensor().call_eagerly(_global_cross_entropy, problem)


def _global_cross_entropy(problem: Problem) -> Tensor | LossTerms:
    local, shard, layout = _dtensor().localize(problem)
    return _wrapped(_logits_call(local, shard).result(), layout)


def value_and_grad(
    problem: Problem, grad_output: Tensor | None, wrt: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`unixent.protocol.Backend.value_and_grad` of this process."""
    if not is_dtensor(problem.logits):
        return _logits_call(problem, _shard_of(problem)).value_and_grad(grad_output, wrt)
    return _dtensor().call_eagerly(_global_value_and_grad, problem, grad_output, wrt)


def _global_value_and_grad(
    problem: Problem, grad_output: Tensor | None, wrt: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    dtensor = _dtensor()
    local, shard, layout = dtensor.localize(problem)
    loss, grads = _logits_call(local, shard).value_and_grad(layout.local_grad_output(grad_output), wrt)
    return layout.wrap(loss), dtensor.wrap_gradients(problem, layout, wrt, grads)


def linear_cross_entropy(problem: LinearProblem) -> Tensor | LossTerms:
    """`unixent.protocol.Backend.linear_cross_entropy` of this process."""
    if not _is_linear_dtensor(problem):
        return _linear_call(problem, _shard_of(problem)).result()
    return _dtensor().call_eagerly(_global_linear_cross_entropy, problem)


def _global_linear_cross_entropy(problem: LinearProblem) -> Tensor | LossTerms:
    local, shard, layout = _dtensor().localize_linear(problem)
    return _wrapped(_linear_call(local, shard).result(), layout)


def linear_value_and_grad(
    problem: LinearProblem, grad_output: Tensor | None, wrt: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`unixent.protocol.Backend.linear_value_and_grad` of this process."""
    if not _is_linear_dtensor(problem):
        return _linear_call(problem, _shard_of(problem)).value_and_grad(grad_output, wrt)
    return _dtensor().call_eagerly(_global_linear_value_and_grad, problem, grad_output, wrt)


def _global_linear_value_and_grad(
    problem: LinearProblem, grad_output: Tensor | None, wrt: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    dtensor = _dtensor()
    local, shard, layout = dtensor.localize_linear(problem)
    loss, grads = _linear_call(local, shard).value_and_grad(layout.local_grad_output(grad_output), wrt)
    return layout.wrap(loss), dtensor.wrap_gradients(problem, layout, wrt, grads)


def position_stats(
    problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
) -> tuple[PositionStats, tuple[Tensor, ...]]:
    """`unixent.protocol.StatsBackend.position_stats` of this process."""
    call = problem.call
    if is_dtensor(call.logits) if isinstance(call, Problem) else _is_linear_dtensor(call):
        return _dtensor().call_eagerly(_global_position_stats, problem, grad_output, wrt)
    return _solve_stats(problem, _shard_of(call), grad_output, wrt)


def _global_position_stats(
    problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
) -> tuple[PositionStats, tuple[Tensor, ...]]:
    dtensor, call = _dtensor(), problem.call
    is_logits = isinstance(call, Problem)
    local, shard, layout = dtensor.localize(call) if is_logits else dtensor.localize_linear(call)
    selected = None if problem.selected is None else layout.local("selected", problem.selected)
    upstream = PositionStats(*map(layout.local_grad_output, grad_output))
    stats, grads = _solve_stats(replace(problem, call=local, selected=selected), shard, upstream, wrt)
    stats = PositionStats(*[None if each is None else layout.wrap(each) for each in stats])
    return stats, dtensor.wrap_gradients(call, layout, wrt, grads)


def _solve_stats(
    problem: StatsProblem, shard: LocalShard, grad_output: PositionStats, wrt: tuple[str, ...]
) -> tuple[PositionStats, tuple[Tensor, ...]]:
    call = problem.call
    prepared = _logits_call(call, shard) if isinstance(call, Problem) else _linear_call(call, shard)
    if shard.model_groups:
        _check_mode(prepared)
    return solve_call(problem, prepared, shard if shard.model_groups else None, grad_output, wrt)


def _check_not_recorded() -> None:
    if current_mode() is Mode.RECORDED:
        raise BackendError("parallel: torch.jit.trace records no communication; use torch.compile or torch.export")


def _logits_call(problem: Problem, shard: LocalShard) -> LogitsCall:
    _check_not_recorded()
    if problem.target_kind == "sparse":
        return cast(LogitsCall, _sparse_call(problem, shard))
    return ShardLogitsCall(problem, shard) if shard.model_groups else LogitsCall(problem, shard.token_groups)


def _linear_call(problem: LinearProblem, shard: LocalShard) -> LinearCall:
    _check_not_recorded()
    if problem.target_kind == "sparse":
        return cast(LinearCall, _sparse_call(problem, shard))
    return ShardLinearCall(problem, shard) if shard.model_groups else LinearCall(problem, shard.token_groups)


def _sparse_call(problem: Problem | LinearProblem, shard: LocalShard) -> LogitsCall | LinearCall:
    call = sparse_call(problem, shard)
    if shard.model_groups:
        _check_mode(call)
    return call


def _shard_of(problem: LossProblem) -> LocalShard:
    assert problem.sharding is not None
    return LocalShard.of(problem.sharding)


def _is_linear_dtensor(problem: LinearProblem) -> bool:
    return problem.sharding is None or is_dtensor(problem.hidden)


def _wrapped(result: Tensor | LossTerms, layout: Any) -> Tensor | LossTerms:
    if isinstance(result, LossTerms):
        return LossTerms(layout.wrap(result.numerator), layout.wrap(result.denominator))
    wrapped: Tensor = layout.wrap(result)
    return wrapped


def _dtensor() -> Any:
    # Slow to import, and there where a DTensor is.
    from unixent_torch.vocab_parallel import dtensor

    return dtensor
