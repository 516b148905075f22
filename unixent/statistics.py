"""What is asked of positions: the outputs of `PositionStats` that a call names, and the arguments that go with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np

from unixent.arguments import INTEGERS, NUMBERS, Argument, check_shape_dtype, describe_arguments
from unixent.errors import BackendError, DTypeError, OptionError, ShapeError, option_error
from unixent.options import LossOptions
from unixent.problem import reads_values, refuse_out_of_range
from unixent.protocol import Array, Backend, ParallelBackend, PositionStats, Problem, StatsBackend, StatsProblem
from unixent.row_statistics import OF_K
from unixent.scores import Scores
from unixent.validation import CheckedCall, FurtherRequest, check_wrt, values_as

OUTPUTS = PositionStats._fields
DIFFERENTIABLE = OUTPUTS[: OUTPUTS.index("log_sum_sq")]
# What `stand_in_selection` has in the place of padding.
_NO_INDEX = -1
_OF_TARGET = ("loss", "log_prob", "correct", "rank")


class StatsRequest(NamedTuple):
    """The outputs that a call asks for, and their arguments, as they were given."""

    outputs: Any
    selected: Any
    k: Any

    def check(self, has_target: bool) -> tuple[str, ...]:
        """The outputs as a tuple of names, for which everything is there."""
        outputs = (self.outputs,) if isinstance(self.outputs, str) else self.outputs
        if not isinstance(outputs, (tuple, list)) or not outputs or any(name not in OUTPUTS for name in outputs):
            raise option_error("outputs", f"one or several of {', '.join(map(repr, OUTPUTS))}", self.outputs)
        missing = [name for name in outputs if name in _OF_TARGET]
        if missing and not has_target:
            raise DTypeError(f"target: expected an array, since outputs has {missing[0]!r}; got None")
        if ("selected_log_prob" in outputs) != (self.selected is not None):
            expected = "class indices, since outputs has" if self.selected is None else "None, since outputs lacks"
            came = type(self.selected).__name__ if self.selected is not None else None
            raise OptionError(f"selected: expected {expected} 'selected_log_prob'; got {came}")
        needs_k = any(name in outputs for name in OF_K)
        if isinstance(self.k, (bool, np.bool_)) or not isinstance(self.k, (int, np.integer)) or self.k < needs_k:
            raise option_error("k", "an int >= 1" if needs_k else "an int >= 0", self.k)
        return tuple(outputs)


def stand_in_target(
    shape: tuple[int, ...], classifier_shape: tuple[int, ...] | None, options: LossOptions, may_split: bool
) -> tuple[np.ndarray[Any, Any], LossOptions]:
    """A target that nothing looks at, for a call without one: of shape P, a class that is not ignored; and its options.

    Where the only class is ignore_index there is no such class. Another index is ignored then, the options are others
    than those given, and ``selected`` is to be what `stand_in_selection` makes of it.

    Args:
        shape: that of logits, or of hidden.
        classifier_shape: that of the classifier, None for logits.
        options: those of the call.
        may_split: whether these may be a share of the classes.
    """
    axis, num_classes = options.axis if classifier_shape is None else -1, options.num_classes
    positions = shape
    if -len(shape) <= axis < len(shape):  # else the axis is refused by the checks
        axis %= len(shape)
        positions = shape[:axis] + shape[axis + 1 :]
        if num_classes is None and not may_split:
            num_classes = shape[axis] if classifier_shape is None else (*classifier_shape, None)[0]
    if options.ignore_index == 0 and num_classes == 1:
        options = replace(options, ignore_index=_NO_INDEX)
    return np.full(positions, not options.ignore_index, np.int64), options


def stand_in_selection(selected: Array) -> Array:
    """``selected`` where the only class is ignore_index: all of it is padding, or out of range."""
    return 2 * (selected != 0) + _NO_INDEX


def stats_request(
    backend: Backend,
    request: StatsRequest,
    outputs: tuple[str, ...],
    options: LossOptions,
    grads: tuple[Any, Any] | None,
    differentiable: tuple[str, ...],
) -> FurtherRequest:
    """What a call asks of its positions; ``grads`` has the upstream gradient and wrt, as they were given."""
    grad_output, wrt = grads or (None, ())

    def text() -> str:
        given = [name for name in OUTPUTS if getattr(grad_output, name, None) is not None]
        return f"{outputs} {request.k} {wrt} {given}"

    def positions(scores: Scores) -> bytes:
        if request.selected is None:
            return b""
        selected = _describe_selected(backend, request.selected, scores)
        values = values_as(cast(ParallelBackend, backend), selected, np.int64) if _is_read(selected, options) else b""
        return str(selected.info.shape).encode() + values

    def build(call: CheckedCall) -> CheckedCall:
        problem = _stats_problem(backend, call, request, outputs, options)
        if grads is None:
            return CheckedCall(problem, call.scores, (), PositionStats())
        names = check_wrt(wrt, differentiable)
        return CheckedCall(
            problem, call.scores, names, _checked_upstream(backend, grad_output, outputs, problem, call.scores)
        )

    return FurtherRequest(text, positions, build)


def _stats_problem(
    backend: Backend, call: CheckedCall, request: StatsRequest, outputs: tuple[str, ...], options: LossOptions
) -> StatsProblem:
    """The checked problem of a call whose positions have been checked."""
    problem, scores = call.problem, call.scores
    if problem.sharding is not None and not backend.capabilities.parallel_position_stats:
        raise BackendError(
            f"parallel: the {backend.name} backend does not split position_stats over processes; expected degrees of 1"
        )
    if problem.target_kind != "index" and any(name in _OF_TARGET[1:] for name in outputs):
        asked = next(name for name in outputs if name in _OF_TARGET[1:])
        raise OptionError(f"outputs: expected 'loss' alone of what probabilities have; got {asked!r}")
    k = int(request.k) if any(name in outputs for name in OF_K) else 0
    if k > problem.num_classes:
        raise option_error("k", f"at most {problem.num_classes} classes", k)
    selected = None
    if request.selected is not None:
        selected = _checked_selected(backend, request.selected, scores, problem.num_classes, options)
    return StatsProblem(call=problem, outputs=outputs, selected=selected, k=k)


def _describe_selected(backend: Backend, value: Any, scores: Scores) -> Argument:
    if isinstance(value, (list, tuple)):
        value = np.asarray(value)
    return describe_arguments(backend, {"selected": value}, scores.first)["selected"]


def _is_read(selected: Argument, options: LossOptions) -> bool:
    return selected.info.dtype in INTEGERS and reads_values(selected.info, options)


def _checked_selected(backend: Backend, value: Any, scores: Scores, num_classes: int, options: LossOptions) -> Array:
    argument = _describe_selected(backend, value, scores)
    shape = argument.info.shape
    if argument.info.dtype not in INTEGERS or shape[:-1] != scores.positions or len(shape) <= len(scores.positions):
        error = ShapeError if argument.info.dtype in INTEGERS else DTypeError
        raise error(
            f"selected: expected class indices (integer) of shape {scores.positions} + (K,); "
            f"got {argument.info.dtype} of shape {shape}"
        )
    if _is_read(argument, options):
        refuse_out_of_range(backend, argument, num_classes, options.ignore_index)
    return argument.array


def _checked_upstream(
    backend: Backend, value: Any, outputs: tuple[str, ...], problem: StatsProblem, scores: Scores
) -> PositionStats:
    """The upstream gradients: of each differentiable output that is asked for, and ones for all of them where none is
    given."""
    asked = [name for name in outputs if name in DIFFERENTIABLE]
    if not asked:
        raise OptionError(f"outputs: expected one with a gradient ({', '.join(DIFFERENTIABLE)}); got {outputs}")
    shapes = dict.fromkeys(asked, scores.positions)
    if problem.selected is not None and "selected_log_prob" in asked:
        shapes["selected_log_prob"] = tuple(problem.selected.shape)
    if value is None:
        ones = {name: backend.asarray(np.ones(shape), scores.first.array) for name, shape in shapes.items()}
        return PositionStats(**ones)
    if not isinstance(value, PositionStats):
        raise DTypeError(f"grad_output: expected a PositionStats; got {type(value).__name__}")
    given = {name: array for name, array in value._asdict().items() if array is not None}
    for name in given:
        if name not in asked:
            raise option_error("grad_output", f"a gradient of {' or '.join(map(repr, asked))}", name)
    checked = {}
    for name, array in given.items():
        argument = describe_arguments(backend, {f"grad_output.{name}": array}, scores.first)[f"grad_output.{name}"]
        checked[name] = check_shape_dtype(argument, shapes[name], NUMBERS)
    return PositionStats(**checked)


def compute(
    backend: Backend, problem: StatsProblem, upstream: PositionStats, wrt: tuple[str, ...]
) -> tuple[PositionStats, tuple[Array, ...]]:
    """The statistics and gradients, the loss of a sparse target by a pass of its own."""
    call, asks = problem.call, cast(StatsBackend, backend).position_stats
    if call.target_kind != "sparse" or "loss" not in problem.outputs:
        return asks(problem, upstream, wrt)
    stats, grads = PositionStats(), ()
    others = replace(problem, outputs=tuple(name for name in problem.outputs if name != "loss"))
    if others.outputs:
        of_others = upstream._replace(loss=None)
        stats, grads = asks(others, of_others, wrt if any(each is not None for each in of_others) else ())
    is_logits, backend_of_any = isinstance(call, Problem), cast(Any, backend)
    if wrt and upstream.loss is not None:
        both = backend_of_any.value_and_grad if is_logits else backend_of_any.linear_value_and_grad
        loss, of_loss = both(call, upstream.loss, wrt)
        grads = tuple([a + b for a, b in zip(grads, of_loss, strict=True)]) if grads else of_loss
    else:
        loss = (backend_of_any.cross_entropy if is_logits else backend_of_any.linear_cross_entropy)(call)
    return stats._replace(loss=loss), grads
