"""A call of either form, by the way that suits how torch runs it."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.protocol import PositionStats, Problem, StatsProblem
from unixent_torch.collectives import LocalShard
from unixent_torch.kernel.mode import Mode
from unixent_torch.linear.autograd import cast_like
from unixent_torch.linear.problem import LinearCall
from unixent_torch.logits.positions import safe_selection
from unixent_torch.logits.problem import LogitsCall
from unixent_torch.positions.autograd import RowStatistics, TracedStatistics
from unixent_torch.positions.kernel import row_statistics
from unixent_torch.positions.linear import LinearStatistics, composed_gradients, linear_stats, whole_logits
from unixent_torch.positions.rows import Columns, StatsSpec, row_gradient, row_stats


def solve_stats(
    problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
) -> tuple[PositionStats, tuple[Tensor, ...]]:
    """The statistics, and the gradients for ``wrt``."""
    call = LogitsCall(problem.call) if isinstance(problem.call, Problem) else LinearCall(problem.call)
    return solve_call(problem, call, None, grad_output, wrt)


def solve_call(
    problem: StatsProblem,
    call: LogitsCall | LinearCall,
    shard: LocalShard | None,
    grad_output: PositionStats,
    wrt: tuple[str, ...],
) -> tuple[PositionStats, tuple[Tensor, ...]]:
    """The same of a call of the loss that has been prepared, whose classes are split as ``shard`` says, if at all."""
    kernel, outputs = call.spec.kernel, tuple(name for name in problem.outputs if name != "loss")
    spec, columns = StatsSpec(kernel, outputs, problem.k, shard), _columns(problem, call)
    upstream = {name: each.to(kernel.acc_dtype) for name, each in grad_output._asdict().items() if each is not None}
    of_loss = upstream.pop("loss", None)
    stats: dict[str, Tensor] = {}
    grads: tuple[Tensor, ...] = ()
    if "loss" in problem.outputs:
        if of_loss is None:
            stats["loss"] = call.result()
        else:
            stats["loss"], grads = call.value_and_grad(of_loss, wrt)
    if outputs:
        rest = (columns, spec, upstream, wrt)
        more, more_grads = of_logits(call, *rest) if isinstance(call, LogitsCall) else of_hidden(call, *rest)
        stats |= more
        both = bool(grads and more_grads)
        grads = tuple([a + b for a, b in zip(grads, more_grads, strict=True)]) if both else grads or more_grads
    result = getattr(torch, problem.call.result_dtype)
    finished = {name: each.to(result) if each.is_floating_point() else each for name, each in stats.items()}
    return PositionStats(**finished), grads


def _columns(problem: StatsProblem, call: LogitsCall | LinearCall) -> Columns:
    target, position_weight, _ = call.positions
    selected = weight = None
    if problem.selected is not None:
        options, dtype = problem.call.options, call.spec.kernel.acc_dtype
        selected, weight = safe_selection(problem.selected, problem.call.num_classes, options.ignore_index, dtype)
    return Columns(None if target.is_floating_point() else target, selected, weight, position_weight)


def of_logits(
    call: LogitsCall, columns: Columns, spec: StatsSpec, upstream: dict[str, Tensor], wrt: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    x, is_eager = call.operands[0], call.mode is Mode.EAGER
    if not wrt and is_eager and torch.is_grad_enabled() and x.requires_grad and spec.graded:
        outputs = RowStatistics.apply(x, columns, spec)
        return dict(zip(spec.outputs, outputs, strict=True)), ()
    if not is_eager:
        grads = (call.of_axis(row_gradient(x, upstream, columns, spec).to(x.dtype)),) if upstream else ()
        return _functional(x, columns, spec, call.mode), grads
    with torch.no_grad():
        stats, grad, _ = row_statistics(x, columns, spec, upstream or None)
        return stats, () if grad is None else (call.of_axis(grad),)


def of_hidden(
    call: LinearCall, columns: Columns, spec: StatsSpec, upstream: dict[str, Tensor], wrt: tuple[str, ...]
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    operands = call.operands._replace(target=call.operands.target.detach(), weight=None)
    is_eager, chunks = call.mode is Mode.EAGER, call.linear_spec
    if not wrt and is_eager and call.is_differentiated() and spec.graded:
        outputs = LinearStatistics.apply(*operands, columns, spec, chunks)
        return dict(zip(spec.outputs, outputs, strict=True)), ()
    wrt = wrt if upstream else ()
    if not is_eager:
        grads = composed_gradients(operands, columns, spec, chunks, upstream, wrt) if wrt else ()
        x = whole_logits(operands, chunks)
        return _functional(x, columns, spec, call.mode), cast_like(wrt, grads, operands)
    with torch.no_grad():
        stats, grads, _ = linear_stats(operands, columns, spec, chunks, upstream, wrt)
        return stats, cast_like(wrt, grads, operands)


def _functional(x: Tensor, columns: Columns, spec: StatsSpec, mode: Mode) -> dict[str, Tensor]:
    """The statistics of whole logits as operations that transforms and compilers see."""
    if mode is Mode.TRACED and torch.is_grad_enabled() and x.requires_grad and spec.graded:
        return dict(zip(spec.outputs, TracedStatistics.apply(x, columns, spec), strict=True))
    return row_stats(x, columns, spec)
