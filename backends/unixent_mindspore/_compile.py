"""A call in code that MindSpore compiles: the same checks as of an eager call, made while compiling.

A function marked `compile_time` runs as ordinary Python on constants, of which shapes and dtypes are some; any other is
compiled, from its source, and is written in the subset of Python that MindSpore knows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.ops.primitive import constexpr

from unixent import arguments, validation
from unixent.errors import BackendError, OptionError, UnixentError
from unixent.options import LossOptions
from unixent.protocol import ArrayInfo
from unixent_mindspore._backend import MindsporeBackend, dtype_name
from unixent_mindspore._cells import graph_cell, on_cpu, pull
from unixent_mindspore._groups import size_of
from unixent_mindspore._plan import ABSENT, FLOATS, Plan


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor of the graph being compiled, as far as the checks go."""

    shape: tuple[int, ...]
    dtype: Any


class _Compiler(MindsporeBackend):
    """The backend as the checks see it while a graph is compiled: no array has values, no process can be asked."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def owns(self, array: object) -> bool:
        return isinstance(array, Spec)

    def describe(self, arrays: tuple[Spec, ...]) -> tuple[ArrayInfo, ...]:
        device = str(ms.get_context("device_target"))
        return tuple(
            [
                ArrayInfo(array.shape, dtype_name(array.dtype), device, readable=False, concrete=False)
                for array in arrays
            ]
        )

    def asarray(self, value: np.ndarray[Any, Any], like: Any) -> Spec:
        return Spec(value.shape, value.dtype)

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        # A process that compiles must not wait for one that already has: the graph compares the rows when it runs.
        self.rows.append(row)
        return [row] * size_of(group)

    def facts(self) -> tuple[int, int, int] | None:
        """The call, positions and classes that this process would tell the others, if there are any."""
        if not self.rows:
            return None
        row = self.rows[0]
        # (refused, call, positions, classes) to the model group; without one, (refused, call, classes) to the tokens'.
        return (row[1], row[2] if len(row) == 4 else 0, row[-1])


_compiler = _Compiler()


def compile_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that the compiler calls with constants."""

    @wraps(function)
    def run(*values: Any) -> Any:
        try:
            return function(*values)
        except UnixentError:
            # MindSpore dumps a graph that failed to compile, by default into the working directory.
            os.environ.setdefault("MS_OM_PATH", tempfile.mkdtemp(prefix="unixent-"))
            raise

    return constexpr(run, check=False)  # type: ignore[no-any-return]


@compile_time
def constant(value: Any, name: str) -> Tensor:
    """A Python number, list or NumPy array as a tensor, by the rules of an eager call."""
    if isinstance(value, arguments.PYTHON_TYPES):
        value = arguments.from_python(name, value)
    return MindsporeBackend().asarray(np.asarray(value), None)


def tensor(value: Any, name: str) -> Any:
    if value is None or isinstance(value, Tensor):
        return value
    return constant(value, name)


def signature(value: Tensor | None) -> Any:
    return None if value is None else (value.shape, value.dtype)


def _options(settings: tuple[Any, ...]) -> LossOptions:
    return LossOptions(**{field.name: value for field, value in zip(fields(LossOptions), settings, strict=True)})


@compile_time
def plan(
    signatures: tuple[Any, ...], settings: tuple[Any, ...], number: float | None, others: tuple[Any, ...], linear: bool
) -> Any:
    """Check a call and return the cell that computes the "loss", the "terms", or loss and gradients ("pull")."""
    parallel, backend, form, chunk = others
    if backend not in (None, "mindspore"):
        raise BackendError(f"backend: expected None or 'mindspore' in code that MindSpore compiles; got {backend!r}")
    specs = [None if item is None else Spec(*item) for item in signatures]
    scores, classifier, bias, target, weight, mask, normalizer = specs
    common = arguments.CommonArguments(
        target, weight, mask, number if normalizer is None else normalizer, parallel, form == "terms"
    )
    options = _options(settings)
    _compiler.rows = []
    if linear:
        problem: Any = validation.linear_problem(
            _compiler, arguments.LinearArguments(scores, classifier, bias, chunk), common, options
        )[0]
    else:
        problem = validation.logits_problem(_compiler, scores, common, options)[0]
    names = [None if item is None else dtype_name(item.dtype) for item in specs]
    if number is not None:
        names[-1] = problem.acc_dtype
    shape = specs[0].shape  # type: ignore[union-attr]
    vacant = 0 in (shape[:-1] if linear else shape[: problem.axis] + shape[problem.axis + 1 :])
    found = Plan.of(problem, tuple(names), vacant, _compiler.facts())
    return pull(found, on_cpu(), True) if form == "pull" else graph_cell(found, on_cpu())


def prepare(inputs: tuple[Any, ...], settings: tuple[Any, ...], others: tuple[Any, ...], linear: bool) -> Any:
    """The cell of a call, and its inputs."""
    number = None
    if inputs[6] is not None and not isinstance(inputs[6], Tensor):
        number = inputs[6]
    tensors = (
        tensor(inputs[0], "hidden" if linear else "logits"),
        tensor(inputs[1], "classifier"),
        tensor(inputs[2], "bias"),
        tensor(inputs[3], "target"),
        tensor(inputs[4], "weight"),
        tensor(inputs[5], "mask"),
        inputs[6] if number is None else None,
    )
    signatures: Any = ()
    for item in tensors:
        signatures = signatures + (signature(item),)  # noqa: RUF005 - the compiler knows no star in a tuple
    cell = plan(signatures, settings, number, others, linear)
    given: Any = ()
    for item in tensors:
        given = given + (ABSENT if item is None else item,)  # noqa: RUF005
    if number is not None:
        given = given[:6] + (constant(number, "normalizer"),)  # noqa: RUF005
    return cell, given


def pulled(cell: Any, inputs: tuple[Any, ...], names: tuple[str, ...], wrt: Any, grad_output: Any) -> Any:
    """The loss and the gradients that ``wrt`` names."""
    loss, grads = cell(*inputs, grad_output)
    if isinstance(wrt, str):
        return loss, grads[index(names, wrt)]
    found: Any = ()
    for name in wrt:
        found = found + (grads[index(names, name)],)  # noqa: RUF005
    return loss, found


@compile_time
def index(names: tuple[str, ...], name: str) -> int:
    """Where the gradient of ``name`` is among those of scores, classifier, bias and target."""
    return 3 if name == "target" else names.index(name)


@compile_time
def check_wrt(wrt: Any, signatures: tuple[Any, ...], settings: tuple[Any, ...], biased: bool | None) -> Any:
    """The names of all that has a gradient, with ``wrt`` found among them; ``biased`` is None for the logits form."""
    scores, target, upstream = signatures
    names: tuple[str, ...] = ("logits",) if biased is None else ("hidden", "classifier", "bias")[: 2 + biased]
    if "target" in validation.check_wrt(wrt, (*names, "target")) and dtype_name(target[1]) not in FLOATS:
        listed = ", ".join(map(repr, names))
        raise OptionError(f"wrt: expected {listed}, since class indices have no gradient; got 'target'")
    if upstream is not None:
        options, shape = _options(settings), scores[0]
        axis = options.axis % len(shape)
        expected = shape[:axis] + shape[axis + 1 :] if options.reduction == "none" else ()
        given = arguments.describe_arguments(_compiler, {names[0]: Spec(*scores), "grad_output": Spec(*upstream)})
        arguments.check_shape_dtype(given["grad_output"], expected, arguments.NUMBERS)
    return (*names, "target") if dtype_name(target[1]) in FLOATS else names
