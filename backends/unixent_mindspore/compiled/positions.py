"""Statistics of positions, for MindSpore's compiler: checked while compiling, in the subset of Python that it knows.

A graph knows plain tuples only: `PositionStats` is one here, of its fields in their order.
"""

from __future__ import annotations

from typing import Any

from mindspore import Tensor

from unixent.arguments import CommonArguments
from unixent.errors import BackendError
from unixent.options import LossOptions
from unixent.protocol import PositionStats
from unixent.statistics import StatsRequest, stand_in_selection, stand_in_target, stats_request
from unixent_mindspore.compiled.checks import (
    Compiler,
    TracedTensor,
    checked_call,
    from_tuple,
    grad_index,
    padding_of,
    traced_target,
    traced_tensors,
)
from unixent_mindspore.compiled.constants import compile_time
from unixent_mindspore.compiled.functions import cell_inputs, infos_of, target_parts, tensor
from unixent_mindspore.logits.problem import INPUTS, LossSpec, dtype_name
from unixent_mindspore.positions.problem import StatsSpec


@compile_time
def checked_stats(
    infos: tuple[Any, ...],
    has_target: bool,
    teacher: Any,
    request: tuple[Any, Any],
    common: tuple[Any, ...],
    options: LossOptions,
    chunk: Any,
    names: tuple[str, ...],
    wrt: Any,
    upstream: Any,
) -> Any:
    """Check a call, and return the cell that computes its outputs, with their gradients where ``wrt`` names some."""
    traced = traced_tensors(infos, common[2], (names[0], *INPUTS[1:]))
    compiler, linear = Compiler(), names[0] == "hidden"
    if not compiler.capabilities.position_stats:
        raise BackendError("position_stats: the mindspore backend provides statistics of positions on CPU only")
    asked = StatsRequest(request[0], traced[8], request[1])
    outputs = asked.check(has_target)
    given = CommonArguments(traced_target(traced, teacher), traced[4], traced[5], None, common[0])
    grad_output = None if upstream is None else PositionStats(*[g if g is None else TracedTensor(*g) for g in upstream])
    grads = None if wrt is None else (grad_output, wrt)
    further = stats_request(compiler, asked, outputs, options, grads, names)
    if not has_target:
        classifier_shape = tuple(infos[1][0]) if linear else None
        options = stand_in_target(tuple(infos[0][0]), classifier_shape, options, common[0] is not None)[1]
    problem, scores, *_ = checked_call(compiler, traced, given, options, chunk, linear, None, further)
    if problem.call.sharding is not None:
        raise BackendError(
            "parallel: position_stats is split over processes eagerly on CPU with the mindspore backend; got a call in "
            "compiled code"
        )
    dtypes = tuple(None if item is None else dtype_name(item.dtype) for item in traced)
    loss = LossSpec.of(problem.call, dtypes, 0 in scores.positions)
    padding = padding_of(problem.call, problem.call.num_classes, scores)
    return from_tuple(StatsSpec.of_stats(problem, loss), padding, True, wrt is not None)


@compile_time
def no_target(shapes: tuple[Any, Any], options: LossOptions, may_split: bool) -> Tensor:
    return Tensor(stand_in_target(*shapes, options, may_split)[0])


@compile_time
def is_padding_alone(shapes: tuple[Any, Any], options: LossOptions, may_split: bool) -> bool:
    """Whether the only class is ignore_index."""
    return stand_in_target(*shapes, options, may_split)[1] is not options


@compile_time
def places(outputs: Any) -> tuple[int, ...]:
    """Where the fields of `PositionStats` are among the outputs; -1 for those that were not asked for."""
    names = (outputs,) if isinstance(outputs, str) else tuple(dict.fromkeys(outputs))
    return tuple(names.index(name) if name in names else -1 for name in PositionStats._fields)


def by_field(values: Any, outputs: Any) -> Any:
    """The outputs in their places; an empty tuple in the others, since a graph that returns None may not run."""
    stats: Any = ()
    for i in places(outputs):
        stats = stats + (() if i < 0 else values[i],)
    return stats


def statistics(
    scores: tuple[Any, ...],
    common: tuple[Any, ...],
    options: LossOptions,
    request: tuple[Any, ...],
    chunk: Any,
    names: tuple[str, ...],
    grads: Any,
) -> Any:
    outputs, selected, k = request
    has_target = common[0] is not None
    target, ids, teacher = target_parts(common[0])
    selection = tensor(selected, "selected")
    if not has_target:
        shapes = (scores[0].shape, None if names[0] == "logits" else scores[1].shape)
        target = no_target(shapes, options, common[4] is not None)
        if selected is not None and is_padding_alone(shapes, options, common[4] is not None):
            selection = stand_in_selection(selection)
    tensors = scores + (
        target,
        tensor(common[1], "weight"),
        tensor(common[2], "mask"),
        None,
        ids,
        selection,
    )
    infos = infos_of(tensors)
    if grads is None:
        cell = checked_stats(infos, has_target, teacher, (outputs, k), common[4:], options, chunk, names, None, None)
        return by_field(cell(cell_inputs(tensors, None)), outputs), ()
    grad_output, wrt = grads
    wanted = names if wrt is None else wrt
    upstream, upstream_infos = grad_output, None
    if grad_output is not None:
        upstream = ()
        for item in grad_output:
            upstream = upstream + (tensor(item, "grad_output"),)
        upstream_infos = infos_of(upstream)
    cell = checked_stats(
        infos, has_target, teacher, (outputs, k), common[4:], options, chunk, names, wanted, upstream_infos
    )
    values, gradients = cell((upstream,) + cell_inputs(tensors, None))
    stats = by_field(values, outputs)
    if isinstance(wanted, str):
        return stats, gradients[grad_index(wanted, names)]
    chosen: Any = ()
    for name in wanted:
        chosen = chosen + (gradients[grad_index(name, names)],)
    return stats, chosen


def plain_request(outputs: Any, selected: Any, k: Any) -> Any:
    return outputs, selected, k


def logits_stats(logits: Any, common: Any, options: Any, request: Any, grads: Any = None) -> Any:
    scores = (tensor(logits, "logits"), None, None)
    return statistics(scores, common, options, request, None, ("logits",), grads)


def linear_stats(linear: Any, common: Any, options: Any, request: Any, grads: Any = None) -> Any:
    names = ("hidden", "classifier") if linear[2] is None else ("hidden", "classifier", "bias")
    return statistics(linear[:3], common, options, request, linear[3], names, grads)


def position_stats_fields(
    loss: Any = None,
    log_prob: Any = None,
    entropy: Any = None,
    logsumexp: Any = None,
    selected_log_prob: Any = None,
) -> Any:
    """`PositionStats` as upstream gradients: the outputs that have one, and nothing of the others."""
    none = (None, None, None, None, None, None, None, None)
    return (loss, log_prob, entropy, logsumexp, selected_log_prob) + none
