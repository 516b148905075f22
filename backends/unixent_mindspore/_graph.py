"""The public functions inside ``mindspore.jit``, graph mode, ``jvp`` and ``vmap``.

MindSpore compiles Python source. It would compile unixent's own call path too, which is not written in the subset that
it knows; so its parser is told to put these functions in the place of the public ones. The checks are the very same:
they run while the graph is compiled, on shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.graph._parse.resources import convert_object_map
from mindspore.ops.primitive import constexpr

import unixent
from unixent import arguments, checks
from unixent.errors import BackendError, OptionError
from unixent.options import LossOptions
from unixent.protocol import ArrayInfo
from unixent_mindspore._backend import MindsporeBackend, dtype_name
from unixent_mindspore._cells import Loss, graph_cell, on_cpu
from unixent_mindspore._plan import DTYPES, Plan


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor of the graph being compiled, as far as the checks go."""

    shape: tuple[int, ...]
    dtype: Any


class _Compiler(MindsporeBackend):
    """The backend as the checks see it while a graph is compiled: no array has values."""

    def owns(self, array: object) -> bool:
        return isinstance(array, Spec)

    def describe(self, array: Spec) -> ArrayInfo:
        device = str(ms.get_context("device_target"))
        return ArrayInfo(array.shape, dtype_name(array.dtype), device, readable=False, concrete=False)

    def asarray(self, value: np.ndarray[Any, Any], like: Any) -> Spec:
        return Spec(value.shape, value.dtype)


_compiler = _Compiler()


def compile_time(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that the compiler calls with constants."""
    return constexpr(function, check=False)  # type: ignore[no-any-return]


@compile_time
def constant(value: Any, name: str) -> Tensor:
    """A Python number, list or NumPy array as a tensor, by the rules of an eager call."""
    if isinstance(value, arguments._PYTHON):
        value = arguments._from_python(name, value)
    return MindsporeBackend().asarray(np.asarray(value), None)


def tensor(value: Any, name: str) -> Any:
    if value is None or isinstance(value, Tensor):
        return value
    return constant(value, name)


def signature(value: Tensor | None) -> Any:
    return None if value is None else (value.shape, value.dtype)


@compile_time
def plan(
    arrays: tuple[Any, ...],
    options: tuple[Any, ...],
    normalizer: float | None,
    parallel: Any,
    backend: Any,
    terms: bool,
) -> Loss:
    """Check a call and return the cell that computes it."""
    if backend not in (None, "mindspore"):
        raise BackendError(f"backend: expected None or 'mindspore' in code that MindSpore compiles; got {backend!r}")
    logits, target = Spec(*arrays[0]), Spec(*arrays[1])
    weight, mask, divisor = (None if item is None else Spec(*item) for item in arrays[2:])
    sides = checks.Sides(target, weight, mask, normalizer if divisor is None else divisor, parallel, terms)
    problem, _ = checks.logits_problem(_compiler, logits, sides, LossOptions(*options))
    return graph_cell(Plan.of(problem, dtype_name(logits.dtype), dtype_name(target.dtype)), on_cpu())


def call(
    logits: Any,
    target: Any,
    weight: Any,
    mask: Any,
    normalizer: Any,
    options: Any,
    parallel: Any,
    backend: Any,
    terms: bool,
) -> Any:
    """The cell of a call, and its inputs."""
    logits, target = tensor(logits, "logits"), tensor(target, "target")
    weight, mask = tensor(weight, "weight"), tensor(mask, "mask")
    number = None if isinstance(normalizer, Tensor) else normalizer
    divisor = normalizer if isinstance(normalizer, Tensor) else None
    arrays = (signature(logits), signature(target), signature(weight), signature(mask), signature(divisor))
    cell = plan(arrays, options, number, parallel, backend, terms)
    return cell, (logits, target, weight, mask, tensor(normalizer, "normalizer"))


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Any = None,
    on_empty: str = "zero",
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    backend: str | None = None,
) -> Any:
    """`unixent.cross_entropy` in compiled code."""
    options = (axis, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate)
    cell, inputs = call(logits, target, weight, mask, normalizer, options, parallel, backend, False)
    return cell(*inputs)


def loss_terms(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    axis: int = -1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    backend: str | None = None,
) -> Any:
    """`unixent.loss_terms` in compiled code, where the terms are a plain tuple."""
    options = (axis, "sum", ignore_index, label_smoothing, z_loss, softcap, "zero", dtype, validate)
    cell, inputs = call(logits, target, weight, mask, None, options, parallel, backend, True)
    return cell(*inputs)


def value_and_grad(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    mask: Any = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    normalizer: Any = None,
    on_empty: str = "zero",
    dtype: Any = None,
    validate: str = "auto",
    parallel: Any = None,
    backend: str | None = None,
    grad_output: Any = None,
    wrt: Any = "logits",
) -> Any:
    """`unixent.value_and_grad` in compiled code."""
    options = (axis, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate)
    cell, inputs = call(logits, target, weight, mask, normalizer, options, parallel, backend, False)
    loss = cell(*inputs)
    upstream = tensor(grad_output, "grad_output")
    check_wrt(wrt, signature(inputs[0]), signature(inputs[1]), signature(upstream), options)
    if upstream is None:
        upstream = ONES(loss)
    grads = cell.gradient(*inputs, upstream)
    if not cell.gradient.several:
        grads = (grads,)
    if isinstance(wrt, str):
        return loss, grads[0] if wrt == "logits" else grads[1]
    found: tuple[Any, ...] = ()
    for name in wrt:
        found = found + ((grads[0],) if name == "logits" else (grads[1],))
    return loss, found


@compile_time
def check_wrt(wrt: Any, logits: Any, target: Any, upstream: Any, options: tuple[Any, ...]) -> None:
    names = checks.wanted(wrt, ("logits", "target"))
    if "target" in names and dtype_name(target[1]) not in DTYPES:
        raise OptionError("wrt: expected 'logits', since class indices have no gradient; got 'target'")
    if upstream is not None:
        lead = arguments.adopt(_compiler, "logits", Spec(*logits))
        axis = options[0] % len(lead.info.shape)
        positions = lead.info.shape[:axis] + lead.info.shape[axis + 1 :]
        checks.upstream(_compiler, Spec(*upstream), lead, positions, LossOptions(*options))


ONES = ms.ops.operations.OnesLike()


def register() -> None:
    """Let the compiler take these functions for the public ones."""
    for function in (cross_entropy, loss_terms, value_and_grad):
        convert_object_map[getattr(unixent, function.__name__)] = function
