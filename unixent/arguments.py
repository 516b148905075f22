"""One argument at a time: whose array it is, handed over where it is NumPy's, of the dtype and shape expected."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unixent.errors import BackendError, DTypeError, OptionError, ShapeError
from unixent.options import FLOAT_DTYPES
from unixent.protocol import Array, ArrayInfo, Backend
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
    if lead is not None and found.info.device and lead.info.device and found.info.device != lead.info.device:
        raise BackendError(
            f"{name}: expected an array on {lead.info.device}, where {lead.name} is; got one on {found.info.device}"
        )
    return found


def expect(found: Argument, shape: tuple[int, ...], dtypes: frozenset[str]) -> Array:
    if found.info.dtype not in dtypes:
        raise DTypeError(f"{found.name}: expected {_KINDS[dtypes]} of shape {shape}; got {found.info.dtype}")
    if found.info.shape != shape:
        raise ShapeError(
            f"{found.name}: expected {_KINDS[dtypes]} of shape {shape}; "
            f"got {found.info.dtype} of shape {found.info.shape}"
        )
    return found.array


def not_constant(name: str) -> OptionError:
    """The error for a gradient asked of a weight, mask or normalizer; for backends that learn of it late."""
    return OptionError(f"{name}: expected a constant, since it has no gradient; got an array that requires one")


def constant(found: Argument) -> Argument:
    if found.info.requires_grad:
        raise not_constant(found.name)
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
