"""From a call's arguments to a `Problem`: every check and every message, written once for all backends.

Only what ``Backend.describe`` says of an array is looked at, so that the same code runs eagerly, under a trace and
on an accelerator. Values are read in one place, `_check_target_range`, and only where reading does not stall.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from unixent.errors import BackendError, DTypeError, EmptyMeanError, OptionError, ShapeError, TargetRangeError
from unixent.options import DEFAULT_IGNORE_INDEX, FLOAT_DTYPES, LossOptions, ParallelConfig
from unixent.protocol import Array, ArrayInfo, Backend, LinearProblem, Problem
from unixent.registry import backend_of, get_backend

FLOATS = frozenset(FLOAT_DTYPES)
INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
NUMBERS = INTEGERS | FLOATS
REALS = NUMBERS | {"bool"}
_KINDS = {
    FLOATS: "a floating array",
    NUMBERS: "an integer or floating array",
    REALS: "a bool, integer or floating array",
}
_PYTHON = (int, float, list, tuple)  # a bool is an int


class Argument(NamedTuple):
    """An argument that has become the backend's own array, and what is known of it."""

    name: str
    array: Array
    info: ArrayInfo


def resolve(backend: str | None, array: Any, argument: str) -> Backend:
    """The backend of a call: the one named, or the one that its leading array belongs to."""
    if backend is None:
        return get_backend("numpy") if isinstance(array, _PYTHON) else backend_of(array, argument)
    if not isinstance(backend, str):
        raise OptionError(f"backend: expected None or a name; got {backend!r}")
    return get_backend(backend)


def _from_python(name: str, value: Any) -> np.ndarray[Any, Any]:
    """Python numbers and nested lists; integers stay integers only where class indices are meant."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name}: expected a rectangular nested list; got ragged rows") from error
    if name == "target":
        return array.astype(np.int64) if array.size == 0 else array
    return array.astype(np.float64) if array.dtype.kind in "iu" else array


def adopt(backend: Backend, name: str, value: Any, lead: Argument | None = None) -> Argument:
    """``value`` as an array of the backend: its own as it is, NumPy arrays and Python numbers handed over."""
    if not backend.owns(value):
        if isinstance(value, _PYTHON):
            value = _from_python(name, value)
        elif not isinstance(value, (np.ndarray, np.generic)) or isinstance(value, np.ma.MaskedArray):
            own = "a NumPy array" if backend.name == "numpy" else f"a {backend.name} or NumPy array"
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            # Another framework's array has __array__ too, but converting it would cut its gradient silently.
            error = BackendError if hasattr(value, "dtype") and hasattr(value, "shape") else DTypeError
            raise error(f"{name}: expected {own}, since the call runs on the {backend.name} backend; got {kind}")
        if value.dtype.name not in REALS:
            raise DTypeError(f"{name}: expected {_KINDS[REALS]}; got {value.dtype}")
        value = backend.asarray(np.asarray(value), None if lead is None else lead.array)
    found = Argument(name, value, backend.describe(value))
    if lead is not None and found.info.device != lead.info.device:
        raise BackendError(
            f"{name}: expected an array on {lead.info.device}, where {lead.name} is; got one on {found.info.device}"
        )
    return found


def _expect(found: Argument, shape: tuple[int, ...], dtypes: frozenset[str]) -> Array:
    if found.info.dtype not in dtypes:
        raise DTypeError(f"{found.name}: expected {_KINDS[dtypes]} of shape {shape}; got {found.info.dtype}")
    if found.info.shape != shape:
        raise ShapeError(
            f"{found.name}: expected {_KINDS[dtypes]} of shape {shape}; "
            f"got {found.info.dtype} of shape {found.info.shape}"
        )
    return found.array


def _constant(found: Argument) -> Argument:
    if found.info.requires_grad:
        raise OptionError(
            f"{found.name}: expected a constant, since it has no gradient; got an array that requires one"
        )
    return found


def scores(backend: Backend, name: str, value: Any, min_ndim: int, lead: Argument | None = None) -> Argument:
    """logits, hidden, classifier or bias: a floating array of a dtype that the backend takes."""
    found = adopt(backend, name, value, lead)
    dtype, taken = found.info.dtype, backend.capabilities.dtypes
    if dtype not in taken:
        if dtype in FLOATS:
            raise BackendError(f"{name}: the {backend.name} backend takes {', '.join(sorted(taken))}; got {dtype}")
        raise DTypeError(f"{name}: expected {_KINDS[FLOATS]} ({', '.join(sorted(taken))}); got {dtype}")
    if len(found.info.shape) < min_ndim:
        raise ShapeError(f"{name}: expected at least {min_ndim} axis; got shape {found.info.shape}")
    return found


def _normalizer(backend: Backend, value: Any, options: LossOptions, lead: Argument) -> Any:
    if value is None:
        return None
    if options.reduction != "mean":
        raise OptionError(f"normalizer: expected None, since reduction is {options.reduction!r}; got {value!r}")
    expected = "normalizer: expected a finite float >= 0 or a 0-d array"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and value >= 0):
            raise OptionError(f"{expected}; got {value!r}")
        return float(value)
    if isinstance(value, (bool, str, list, tuple)):
        raise OptionError(f"{expected}; got {value!r}")
    return _expect(_constant(adopt(backend, "normalizer", value, lead)), (), NUMBERS)


def _target_kind(backend: Backend, found: Argument, positions: tuple[int, ...], full: tuple[int, ...]) -> str:
    dtype, shape = found.info.dtype, found.info.shape
    if dtype in INTEGERS:
        kind, expected = "index", positions
    elif dtype in FLOATS:
        kind, expected = "probability", full
    else:
        raise DTypeError(f"target: expected class indices (integer) or probabilities (floating); got {dtype}")
    if shape != expected:
        raise ShapeError(
            f"target: expected class indices (integer) of shape {positions} or probabilities (floating) of shape "
            f"{full}; got {dtype} of shape {shape}"
        )
    if kind not in backend.capabilities.targets:
        raise BackendError(f"target: the {backend.name} backend takes no {kind} targets")
    return kind


def _check_target_range(backend: Backend, found: Argument, classes: int, options: LossOptions) -> None:
    invalid = backend.first_invalid_target(found.array, classes, options.ignore_index)
    if invalid is not None:
        flat, value = invalid
        position = tuple(int(i) for i in np.unravel_index(flat, found.info.shape))
        raise TargetRangeError(
            f"target: expected class indices in [0, {classes}) or ignore_index={options.ignore_index}; "
            f"got {value} at position {position}"
        )


def _reads_values(info: ArrayInfo, options: LossOptions) -> bool:
    if options.validate == "off" or not info.concrete:
        return False
    return info.readable or options.validate == "full"


def _parallel(backend: Backend, config: Any) -> ParallelConfig | None:
    if config is None:
        return None
    split = ParallelConfig.of(config)
    if split.degree == 1:
        return None
    if not backend.capabilities.parallel:
        raise BackendError(
            f"parallel: the {backend.name} backend does not split a loss over processes; expected degrees of 1, got "
            f"data_parallel={split.data_parallel}, model_parallel={split.model_parallel}, "
            f"context_parallel={split.context_parallel}"
        )
    return split


class Sides(NamedTuple):
    """The arguments that the logits form and the fused linear form have in common."""

    target: Any
    weight: Any
    mask: Any
    normalizer: Any
    parallel: Any
    terms: bool


def _common(
    backend: Backend,
    lead: Argument,
    positions: tuple[int, ...],
    full: tuple[int, ...],
    classes: int,
    sides: Sides,
    options: LossOptions,
    accumulation: str,
) -> dict[str, Any]:
    target = adopt(backend, "target", sides.target, lead)
    kind = _target_kind(backend, target, positions, full)
    if kind == "probability" and options.ignore_index != DEFAULT_IGNORE_INDEX:
        raise OptionError(
            f"ignore_index: expected the default {DEFAULT_IGNORE_INDEX} with probability targets, which have no index "
            f"to ignore (use mask); got {options.ignore_index}"
        )
    weight, mask = sides.weight, sides.mask
    if weight is not None:
        weight = _expect(_constant(adopt(backend, "weight", weight, lead)), (classes,), FLOATS)
    if mask is not None:
        mask = _expect(_constant(adopt(backend, "mask", mask, lead)), positions, REALS)
    if kind == "index" and _reads_values(target.info, options):
        _check_target_range(backend, target, classes, options)
    return {
        "target": target.array,
        "weight": weight,
        "mask": mask,
        "normalizer": _normalizer(backend, sides.normalizer, options, lead),
        "options": options,
        "classes": classes,
        "target_kind": kind,
        "accumulation": accumulation,
        # Terms are partial sums: in half precision a count above 65504 would already be infinite.
        "result_dtype": options.dtype or (accumulation if sides.terms else lead.info.dtype),
        "terms": sides.terms,
        "check_empty": (
            options.on_empty == "raise" and options.reduction == "mean" and _reads_values(lead.info, options)
        ),
        "parallel": _parallel(backend, sides.parallel),
    }


def logits_problem(backend: Backend, logits: Any, sides: Sides, options: LossOptions) -> tuple[Problem, Argument]:
    """The checked problem of a logits-level call, and its logits."""
    lead = scores(backend, "logits", logits, 1)
    shape = lead.info.shape
    axis = options.axis
    if not -len(shape) <= axis < len(shape):
        raise OptionError(
            f"axis: expected an int in [{-len(shape)}, {len(shape)}) for logits of shape {shape}; got {axis}"
        )
    axis %= len(shape)
    if shape[axis] < 1:
        raise ShapeError(f"logits: expected at least 1 class along axis {axis}; got shape {shape}")
    positions = shape[:axis] + shape[axis + 1 :]
    accumulation = "float64" if lead.info.dtype == "float64" else "float32"
    fields = _common(backend, lead, positions, shape, shape[axis], sides, options, accumulation)
    return Problem(logits=lead.array, axis=axis, **fields), lead


def linear_problem(
    backend: Backend, hidden: Any, classifier: Any, bias: Any, chunk: Any, sides: Sides, options: LossOptions
) -> tuple[LinearProblem, Argument]:
    """The checked problem of a fused linear call, and its hidden states."""
    if not backend.capabilities.linear:
        raise BackendError(f"linear_cross_entropy: the {backend.name} backend does not provide the fused linear form")
    lead = scores(backend, "hidden", hidden, 1)
    weights = scores(backend, "classifier", classifier, 1, lead)
    positions, width = lead.info.shape[:-1], lead.info.shape[-1]
    if len(weights.info.shape) != 2 or weights.info.shape[1] != width or weights.info.shape[0] < 1:
        raise ShapeError(
            f"classifier: expected shape (C, {width}) with C >= 1 for hidden of shape {lead.info.shape}; "
            f"got {weights.info.shape}"
        )
    classes = weights.info.shape[0]
    dtypes = {lead.info.dtype, weights.info.dtype}
    if bias is not None:
        offset = scores(backend, "bias", bias, 1, lead)
        bias = _expect(offset, (classes,), FLOATS)
        dtypes.add(offset.info.dtype)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, (int, np.integer)) or chunk < 1):
        raise OptionError(f"chunk: expected None or an int >= 1; got {chunk!r}")
    accumulation = "float64" if "float64" in dtypes else "float32"
    fields = _common(backend, lead, positions, (*positions, classes), classes, sides, options, accumulation)
    problem = LinearProblem(
        hidden=lead.array, classifier=weights.array, bias=bias, chunk=None if chunk is None else int(chunk), **fields
    )
    return problem, lead


def upstream(backend: Backend, value: Any, lead: Argument, positions: tuple[int, ...], options: LossOptions) -> Any:
    """The checked upstream gradient of `value_and_grad`: of the shape of the loss."""
    if value is None:
        return None
    shape = positions if options.reduction == "none" else ()
    return _expect(adopt(backend, "grad_output", value, lead), shape, NUMBERS)


def wanted(wrt: Any, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """What to differentiate with respect to, as a tuple of names."""
    names = (wrt,) if isinstance(wrt, str) else wrt
    if not isinstance(names, (tuple, list)) or not names or any(name not in allowed for name in names):
        raise OptionError(f"wrt: expected one or several of {', '.join(map(repr, allowed))}; got {wrt!r}")
    return tuple(names)


def empty_mean() -> EmptyMeanError:
    """The error for a mean whose denominator is 0 under ``on_empty="raise"``; for backends."""
    return EmptyMeanError(
        "on_empty: expected a mean with a denominator other than 0; got 0, since every position is masked, ignored "
        "or of weight 0"
    )
