"""The pass over the logits by the native library, for arrays whose memory it can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from unixent_native import DTYPES, MAX_AXES, Share, Strided
from unixent_native import row_losses as native_row_losses
from unixent_native.library import Library
from unixent_numpy.compat import Array
from unixent_numpy.kernel.blocks import num_threads
from unixent_numpy.kernel.composed import empty_grads
from unixent_numpy.kernel.spec import KernelSpec

Solved: TypeAlias = "tuple[Array, tuple[Array, ...]] | None"


def row_losses(
    library: Library,
    x: Array,
    target: Array,
    weight: Array | None,
    position_weight: Array | None,
    grad_scale: Array | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
    out: tuple[Array, ...] | None = None,
    share: Share | None = None,
) -> Solved:
    """Implements the contract of `unixent_numpy.kernel`; None for arrays that the library does not take.

    With ``share`` there are no losses; indices beyond the classes are another process's.
    """
    is_index = target.dtype.kind == "i"
    if not x.shape[-1] or not is_native(x) or not (is_index or is_native(target)):
        return None
    contiguous = x.flags.c_contiguous and target.flags.c_contiguous
    if not (x.dtype.isnative and target.dtype.isnative and (contiguous or x.ndim <= MAX_AXES + 1)):
        rest = (weight, position_weight, grad_scale, spec, wrt, None, share)
        return _by_copies(x, target, wrt, out, lambda here, there: row_losses(library, here, there, *rest))
    dtype, positions = spec.acc_dtype, x.shape[:-1]
    losses = np.empty(positions, dtype)
    grads = out or empty_grads(x, target, wrt)
    by_name = dict(zip(wrt, grads, strict=True))
    # Held by name until the call is over: what goes in is addresses.
    index = target if is_index else None if share is None else share.pivot
    index = None if index is None else np.ascontiguousarray(index, np.int64)
    weight, position_weight = _contiguous(weight, dtype), _contiguous(position_weight, dtype)
    if not wrt:
        grad_scale = None
    elif grad_scale is not None:
        grad_scale = _contiguous(grad_scale if grad_scale.ndim == 0 else np.broadcast_to(grad_scale, positions), dtype)
    done = native_row_losses(
        library,
        x.shape,
        strided(x),
        _address(index),
        None if is_index else strided(target),
        _address(weight),
        _address(position_weight),
        _address(grad_scale),
        0 if grad_scale is None or grad_scale.ndim == 0 else 1,
        losses.ctypes.data,
        strided(by_name["logits"]) if "logits" in by_name else None,
        strided(by_name["target"]) if "target" in by_name else None,
        DTYPES[dtype.name],
        spec.label_smoothing,
        spec.z_loss,
        spec.transform,
        num_threads(),
        0 if share is None else share.columns.ctypes.data,
        None if share is None else share.all_classes,
    )
    return (losses, grads) if done else None


def _by_copies(
    x: Array,
    target: Array,
    wrt: tuple[str, ...],
    out: tuple[Array, ...] | None,
    solve: Callable[[Array, Array], Solved],
) -> Solved:
    """The same for arrays in another byte order, or of more axes than the library counts."""
    done = solve(*[array.astype(array.dtype.newbyteorder("="), order="C", copy=False) for array in (x, target)])
    if done is None:
        return None
    grads = out or empty_grads(x, target, wrt)
    for grad, copy in zip(grads, done[1], strict=True):
        grad[...] = copy
    return done[0], grads


def is_native(array: Array) -> bool:
    """Whether the library reads numbers of this dtype."""
    return array.dtype.name in DTYPES


def strided(array: Array) -> Strided:
    return Strided(array.ctypes.data, DTYPES[array.dtype.name], array.strides)


def _contiguous(array: Array | None, dtype: np.dtype[Any]) -> Array | None:
    # A 0-d array would get an axis.
    return None if array is None else np.asarray(array, dtype, order="C")


def _address(array: Array | None) -> int:
    return 0 if array is None else array.ctypes.data
