"""One argument at a time: whose array it is, handed over where it is NumPy's, of the dtype and shape expected."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from unixent.errors import BackendError, DTypeError, OptionError, ShapeError
from unixent.options import FLOAT_DTYPES
from unixent.protocol import Array, ArrayInfo, Backend, TracingBackend

FLOATS = frozenset(FLOAT_DTYPES)
INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
#: Integers of less than a byte, which JAX and ml_dtypes have, and the dtype that they are computed with.
_BYTES = {f"{sign}int{bits}": f"{sign}int8" for sign in ("", "u") for bits in (2, 4)}
NUMBERS = INTEGERS | FLOATS
REALS = NUMBERS | {"bool"}
_EXPECTED = {
    FLOATS: "a floating array",
    NUMBERS: "an integer or floating array",
    REALS: "a bool, integer or floating array",
}
_REQUIRED = frozenset({"logits", "hidden", "classifier", "target", "target.ids"})
#: Arguments whose Python integers stay integers: they may be class indices.
INDEX_NAMES = frozenset({"target", "target.ids"})
#: Arguments that may be integers in every form of the call.
_INTEGER_NAMES = INDEX_NAMES | {"mask", "selected"}
PYTHON_TYPES = (int, float, list, tuple)  # a bool is an int


class Argument(NamedTuple):
    """An argument that is the backend's own array, and what is known of it."""

    name: str
    array: Array
    info: ArrayInfo


class CommonArguments(NamedTuple):
    """The arguments, as they were given, that the logits form and the fused linear form have in common."""

    target: Any
    weight: Any = None
    mask: Any = None
    normalizer: Any = None
    parallel: Any = None
    return_terms: bool = False
    backend: str | None = None


class LinearArguments(NamedTuple):
    """The arguments, as they were given, of the fused linear form alone."""

    hidden: Any
    classifier: Any
    bias: Any = None
    chunk: Any = None


def _array_inside(value: Any) -> Any:
    """An array of a framework inside nested lists or tuples, if there is one."""
    for item in value:
        if isinstance(item, (list, tuple)):
            item = _array_inside(item)
            if item is not None:
                return item
        elif not isinstance(item, (int, float, np.ndarray, np.generic)) and hasattr(item, "dtype"):
            return item
    return None


def refuse_array_inside(name: str, value: list[Any] | tuple[Any, ...]) -> None:
    """Raise for lists that hold a framework's arrays: made one array of NumPy's, they would lose their derivatives."""
    array = _array_inside(value)
    if array is not None:
        raise DTypeError(
            f"{name}: expected an array, or a nested list of numbers; got a list that holds a "
            f"{type(array).__module__}.{type(array).__qualname__} (make one array of them first: stack)"
        )


def from_python(name: str, value: Any) -> np.ndarray[Any, Any]:
    """Python numbers and nested lists; integers stay integers only where class indices are meant."""
    if isinstance(value, (list, tuple)):
        refuse_array_inside(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name}: expected a rectangular nested list; got ragged rows") from error
    if name in INDEX_NAMES:
        return array.astype(np.int64) if array.size == 0 else array
    return array.astype(np.float64) if array.dtype.kind in "iu" else array


def as_backend_array(backend: Backend, name: str, value: Any, like: Array | None) -> Array:
    """``value`` as an array of the backend: its own as it is, NumPy arrays and Python numbers handed over to the device
    of ``like``."""
    if backend.owns(value):
        return value
    if backend.capabilities.traces_values:
        array = cast(TracingBackend, backend).traced_asarray(name, value, like)
        if array is not None:
            return array
    if isinstance(value, PYTHON_TYPES):
        value = from_python(name, value)
    elif not isinstance(value, (np.ndarray, np.generic)) or isinstance(value, np.ma.MaskedArray):
        expected = "a NumPy array" if backend.name == "numpy" else f"a {backend.name} or NumPy array"
        type_name = f"{type(value).__module__}.{type(value).__qualname__}"
        # Another framework's array has __array__ too, but converting it would cut its gradient silently.
        error = BackendError if hasattr(value, "dtype") and hasattr(value, "shape") else DTypeError
        raise error(f"{name}: expected {expected}, since the call runs on the {backend.name} backend; got {type_name}")
    if value.dtype.name in _BYTES and name in _INTEGER_NAMES:
        value = value.astype(_BYTES[value.dtype.name])
    if value.dtype.name not in REALS:
        raise DTypeError(f"{name}: expected {_EXPECTED[REALS]}; got {value.dtype}")
    array = np.asarray(value)
    if not array.dtype.isnative:  # the other byte order, which only NumPy has
        array = array.astype(array.dtype.newbyteorder("="))
    return backend.asarray(array, like)


def _in_bytes(backend: Backend, argument: Argument) -> Argument:
    """An array of integers of less than a byte in whole ones, if its framework can convert it."""
    name, array, info = argument
    if name not in _INTEGER_NAMES or not hasattr(array, "astype"):
        return argument
    wide = array.astype(_BYTES[info.dtype])
    return Argument(name, wide, backend.describe((wide,))[0])


def describe_arguments(backend: Backend, values: dict[str, Any], first: Argument | None = None) -> dict[str, Argument]:
    """The arguments given (None: not given) as arrays of the backend, all on the device of the first of them."""
    like = None if first is None else first.array
    arrays: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            if name in _REQUIRED:
                raise DTypeError(f"{name}: expected an array; got None")
            continue
        if like is not None and type(value) is type(like):
            arrays[name] = value  # the backend's as well
        else:
            arrays[name] = as_backend_array(backend, name, value, like)
        if like is None:
            like = arrays[name]
    infos = backend.describe(tuple(arrays.values()))
    arguments = dict(zip(arrays, map(Argument, arrays, arrays.values(), infos), strict=True))
    if first is None:
        first = next(iter(arguments.values()))
    device = first.info.device
    for name, argument in arguments.items():
        if argument.info.layout:
            raise BackendError(f"{name}: expected a dense array; got one of layout {argument.info.layout}")
        if argument.info.device != device and argument.info.device and device:
            raise BackendError(
                f"{name}: expected an array on {device}, where {first.name} is; got one on {argument.info.device}"
            )
        if argument.info.dtype in _BYTES:
            arguments[name] = _in_bytes(backend, argument)
    return arguments


def check_shape_dtype(argument: Argument, shape: tuple[int, ...], dtypes: frozenset[str]) -> Array:
    """The array, which has that shape and one of those dtypes."""
    name, array, info = argument
    if info.dtype not in dtypes:
        raise DTypeError(f"{name}: expected {_EXPECTED[dtypes]} of shape {shape}; got {info.dtype}")
    if info.shape != shape:
        raise ShapeError(
            f"{name}: expected {_EXPECTED[dtypes]} of shape {shape}; got {info.dtype} of shape {info.shape}"
        )
    return array


def check_scores(backend: Backend, argument: Argument) -> None:
    """That logits, hidden, classifier or bias have a dtype that the backend takes, and an axis."""
    name, _, info = argument
    taken = backend.capabilities.dtypes
    if info.dtype not in taken:
        if info.dtype in FLOATS:
            raise BackendError(f"{name}: the {backend.name} backend takes {', '.join(sorted(taken))}; got {info.dtype}")
        raise DTypeError(f"{name}: expected {_EXPECTED[FLOATS]} ({', '.join(sorted(taken))}); got {info.dtype}")
    if not info.shape:
        raise ShapeError(f"{name}: expected at least 1 axis; got shape {info.shape}")


def not_constant(name: str) -> OptionError:
    """The error for a gradient asked of a weight, mask or normalizer; for backends that learn of it late."""
    return OptionError(f"{name}: expected a constant, since it has no gradient; got an array that requires one")
