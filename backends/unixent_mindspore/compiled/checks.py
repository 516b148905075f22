"""The checks of an eager call, made while compiling.

Shapes and dtypes are constants of the graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from mindspore import nn

from unixent import validation
from unixent.arguments import CommonArguments, LinearArguments
from unixent.classes import class_axes
from unixent.errors import BackendError, ShapeError
from unixent.options import LossOptions
from unixent.protocol import ArrayInfo, LossProblem
from unixent.scores import Scores
from unixent.topk import TopK
from unixent_mindspore import kernel
from unixent_mindspore.backend import MindsporeBackend
from unixent_mindspore.collectives import group_size
from unixent_mindspore.compiled.constants import beyond_float32, compile_time
from unixent_mindspore.logits.problem import (
    INPUTS,
    LossSpec,
    dtype_name,
    existing_share,
    pad_classes,
    take_classes,
)
from unixent_mindspore.loss_cell import graph_cell, stats_cell, value_and_grad_cell
from unixent_mindspore.positions.problem import StatsSpec

Axes = tuple[int | None, ...]  # of the classes in each of the inputs


@dataclass(frozen=True, slots=True)
class TracedTensor:
    """A tensor of the graph being compiled, as far as the checks go."""

    shape: tuple[int, ...]
    dtype: Any


class FromTuple(nn.Cell):
    """A cell that takes its inputs as a tuple: the compiler calls none with ``*inputs`` that compile-time code made."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell

    def construct(self, inputs: tuple[Any, ...]) -> Any:
        return self.cell(*inputs)


class OfExistingClasses(FromTuple):
    """The same of inputs of which only the first classes exist, each along its axis, where it has one."""

    def __init__(self, cell: nn.Cell, axes: Axes, num_classes: int) -> None:
        super().__init__(cell)
        self.axes, self.num_classes = axes, num_classes

    def existing(self, inputs: tuple[Any, ...]) -> Any:
        narrowed: Any = ()
        for i in range(len(inputs)):
            item, axis = inputs[i], self.axes[i]
            if axis is not None:
                item = take_classes(item, axis, self.num_classes)
            narrowed = narrowed + (item,)
        return narrowed

    def construct(self, inputs: tuple[Any, ...]) -> Any:
        return self.cell(*self.existing(inputs))


class OfExistingClassesWithGrads(OfExistingClasses):
    """The same of a cell that takes the upstream gradient first and returns the gradients, which are padded again."""

    def construct(self, inputs: tuple[Any, ...]) -> Any:
        loss, grads = self.cell(*self.existing(inputs))
        padded: Any = ()
        for i in range(len(grads)):
            grad, axis = grads[i], self.axes[i + 1]
            if axis is not None:
                grad = pad_classes(grad, axis, inputs[i + 1].shape[axis])
            padded = padded + (grad,)
        return loss, padded


@lru_cache(maxsize=512)
def from_tuple(spec: LossSpec, padding: tuple[Axes, int] | None, on_host: bool, with_grad: bool) -> FromTuple:
    """The cell of a call; ``padding`` has the axes of the classes, and how many exist, where there is some."""
    if isinstance(spec, StatsSpec):
        cell: Any = stats_cell(spec, True, with_grad)
    else:
        cell = value_and_grad_cell(spec, on_host, True) if with_grad else graph_cell(spec, on_host)
    if padding is None:
        return FromTuple(cell)
    axes, num_classes = padding
    if with_grad:
        return OfExistingClassesWithGrads(cell, (None, *axes), num_classes)
    return OfExistingClasses(cell, axes, num_classes)


class Compiler(MindsporeBackend):
    """The backend as the checks see it while a graph is compiled: no array has values, no process can be asked."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def owns(self, array: object) -> bool:
        return isinstance(array, TracedTensor)

    def broadcast_to(self, array: TracedTensor, shape: tuple[int, ...]) -> TracedTensor:
        return TracedTensor(shape, array.dtype)

    def take_classes(self, array: TracedTensor, axis: int, num_classes: int) -> TracedTensor:
        return TracedTensor((*array.shape[:axis], num_classes, *array.shape[axis + 1 :]), array.dtype)

    def describe(self, arrays: tuple[TracedTensor, ...]) -> tuple[ArrayInfo, ...]:
        device = self.devices()[0].name
        return tuple(
            [
                ArrayInfo(array.shape, dtype_name(array.dtype), device, readable=False, concrete=False)
                for array in arrays
            ]
        )

    def asarray(self, value: np.ndarray[Any, Any], like: Any) -> TracedTensor:
        return TracedTensor(value.shape, value.dtype)

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        # A process that compiles must not wait for one that already has: the graph compares the rows when it runs.
        self.rows.append(row)
        return [row] * group_size(group)

    def call_signature(self) -> tuple[int, int, int] | None:
        """The call, positions and classes that this process would tell the others, if there are any."""
        if not self.rows:
            return None
        row = self.rows[0]
        # (refused, call, positions, classes) to the model group; without one, (refused, call, classes) to the tokens'.
        return (row[1], row[2] if len(row) == 4 else 0, row[-1])


@compile_time
def checked_loss(
    infos: tuple[Any, ...],
    number: float | None,
    teacher: Any,
    common: tuple[Any, ...],
    options: LossOptions,
    chunk: Any,
    linear: bool,
) -> Any:
    """Check a call and return the cell that computes its loss; ``infos`` has shape and dtype of each of `INPUTS`."""
    return from_tuple(*_checked(infos, number, teacher, common, options, chunk, linear), False)


@compile_time
def checked_value_and_grad(
    infos: tuple[Any, ...],
    number: float | None,
    teacher: Any,
    common: tuple[Any, ...],
    options: LossOptions,
    chunk: Any,
    names: tuple[str, ...],
    wrt: Any,
    grad_output: Any,
) -> Any:
    """Check a call and return the cell that computes its loss and gradients; ``names`` are the scores' arguments."""
    upstream = None if grad_output is None else TracedTensor(*grad_output)
    grads = validation.GradRequest(wrt, (*names, "target"), upstream)
    return from_tuple(*_checked(infos, number, teacher, common, options, chunk, names[0] == "hidden", grads), True)


def _checked(
    infos: tuple[Any, ...],
    number: float | None,
    teacher: Any,
    common: tuple[Any, ...],
    options: LossOptions,
    chunk: Any,
    linear: bool,
    grads: validation.GradRequest | None = None,
) -> tuple[LossSpec, tuple[Axes, int] | None, bool]:
    """What is static of a call, its padding as `from_tuple` takes it, and whether its arrays lie in host memory."""
    traced = traced_tensors(infos, common[2], ("hidden" if linear else "logits", *INPUTS[1:]))
    if number == math.inf:
        raise beyond_float32("normalizer", number, "a float64 tensor may be any number")
    normalizer = number if traced[6] is None else traced[6]
    given = CommonArguments(traced_target(traced, teacher), traced[4], traced[5], normalizer, *common[:2])
    compiler = Compiler()
    problem, scores, *_ = checked_call(compiler, traced, given, options, chunk, linear, grads)
    dtypes = [None if item is None else dtype_name(item.dtype) for item in traced]
    if number is not None:
        dtypes[6] = "float64"
    problem, num_classes = existing_share(compiler, problem)
    spec = LossSpec.of(problem, tuple(dtypes), 0 in scores.positions, compiler.call_signature())
    return spec, padding_of(problem, num_classes, scores), kernel.on_host()


def traced_target(traced: list[TracedTensor | None], teacher: Any) -> Any:
    """The target among the inputs, as it was given."""
    if teacher is None:
        return traced[3]
    tail, is_log = teacher
    return TopK(traced[7], **{"log_probs" if is_log else "probs": traced[3]}, tail=tail)


def traced_tensors(infos: tuple[Any, ...], backend: Any, names: tuple[str, ...]) -> list[TracedTensor | None]:
    """The inputs of a call, of which a callback takes each."""
    if backend not in (None, "mindspore"):
        raise BackendError(f"backend: expected None or 'mindspore' in code that MindSpore compiles; got {backend!r}")
    traced = [None if item is None else TracedTensor(*item) for item in infos]
    for name, item in zip(names, traced, strict=True):
        _check_callback_takes(name, item)
    return traced


def checked_call(
    compiler: Compiler,
    traced: list[TracedTensor | None],
    given: CommonArguments,
    options: LossOptions,
    chunk: Any,
    linear: bool,
    grads: validation.GradRequest | None = None,
    further: validation.FurtherRequest | None = None,
) -> validation.CheckedCall:
    """The call of either form."""
    if linear:
        of_form = LinearArguments(traced[0], traced[1], traced[2], chunk)
        return validation.linear_call(compiler, of_form, given, options, grads, further)
    return validation.logits_call(compiler, traced[0], given, options, grads, further)


def padding_of(problem: LossProblem, num_classes: int, scores: Scores) -> tuple[Axes, int] | None:
    """The axes of the classes, and how many exist, where there is padding."""
    axes = class_axes(problem)
    return None if num_classes == scores.num_local_classes else (tuple(map(axes.get, INPUTS)), num_classes)


def _check_callback_takes(name: str, item: TracedTensor | None) -> None:
    """That the callback into NumPy can be given the array: MindSpore fails without words on what is refused here."""
    if item is None:
        return
    if item.shape is None or any(size is None or size < 0 for size in item.shape):
        raise ShapeError(
            f"{name}: expected a shape that is known while MindSpore compiles; got {item.shape} (without dynamic=1 and "
            "set_inputs, MindSpore compiles a graph for each shape)"
        )
    if name in ("hidden", "classifier", "selected") and item.shape[-1:] == (0,):
        raise ShapeError(f"{name}: expected at least 1 column in code that MindSpore compiles; got shape {item.shape}")


@compile_time
def grad_index(name: str, names: tuple[str, ...]) -> int:
    """Where the gradient of an argument is among those of the first four inputs."""
    return 3 if name == "target" else names.index(name)
