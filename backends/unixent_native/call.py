"""A call of the library: arrays as addresses and strides, packed the way ``source/call.h`` reads them.

What is not an address stays the same from call to call of a program; it is packed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from unixent.logit_transform import LogitTransform
from unixent_native.library import ADDRESSES, CALL, MAX_AXES, Library

#: Codes of the dtypes that the library reads and writes; float32 and float64 are those it computes in.
DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}

#: Below so many numbers a thread, a call is over before another thread has started: 0.1 ms.
NUMBERS_PER_THREAD = 1 << 16

_pack_addresses, _pack_call = ADDRESSES.pack, CALL.pack
_ABSENT = (0,) * (3 + MAX_AXES)


class Strided(NamedTuple):
    """An array P + (C,) in memory.

    Attributes:
        data: its address; 0 where there is no array.
        dtype: its code in `DTYPES`.
        strides: in bytes, the classes' last.
    """

    data: int
    dtype: int
    strides: tuple[int, ...]


class Share(NamedTuple):
    """One half of the pass over a share of the classes, as the backends' adapters are given it.

    Attributes:
        columns: the array that the first half writes, and the second reads.
        all_classes: the number of classes of all processes.
        pivot: P, the pivot's column where it is here, for the gradients of probabilities.
    """

    columns: Any
    all_classes: int
    pivot: Any = None


def row_losses(
    library: Library,
    shape: tuple[int, ...],
    x: Strided,
    index: int,
    probabilities: Strided | None,
    weight: int,
    position_weight: int,
    grad_scale: int,
    grad_scale_step: int,
    losses: int,
    x_grad: Strided | None,
    probabilities_grad: Strided | None,
    acc_dtype: int,
    label_smoothing: float,
    z_loss: float,
    transform: LogitTransform,
    threads: int,
    columns: int = 0,
    all_classes: int | None = None,
) -> bool:
    """The losses of positions P, and the gradients that are asked for. Numbers are addresses, 0 where there is nothing.

    Arguments are passed by place: keywords would take 2 us of a small loss.

    With ``columns``, one of the halves of a share of the classes, as ``source/call.h`` describes them: losses are not
    written.

    Args:
        library: the library.
        shape: P + (C,), C >= 1.
        x, x_grad: logits and their gradient, which may be the same memory.
        index: int64 class indices, P in C order, or 0; out of range is NaN.
        probabilities, probabilities_grad: class probabilities and their gradient.
        weight: class weights (C,) of the accumulation dtype.
        position_weight: v, P in C order, of the accumulation dtype.
        grad_scale: what a position's derivative is multiplied by, v included, of the accumulation dtype; one number, or
            (with a step of 1) P in C order.
        grad_scale_step: 0 or 1.
        losses: P in C order, of the accumulation dtype.
        acc_dtype: that of float32 or float64.
        label_smoothing, z_loss: the options.
        transform: what becomes of the logits first.
        threads: the most threads to use.
        columns: float64; without a gradient `unixent.pivot.ShareStats` to fill, each field P in C order; with one
            what exp(x_c - m) is multiplied by, x_k, m, the gradient at the pivot, and L_k.
        all_classes: C of all processes.

    Returns:
        Whether it was done. Not taken are arrays at no address, and positions along more than `MAX_AXES` strides.

    Raises:
        MemoryError: no memory for a row of each thread.
    """
    addresses: tuple[int, ...] = ()
    strides: tuple[tuple[int, tuple[int, ...]] | None, ...] = ()
    everywhere = bool(losses)
    for array in (x, probabilities, x_grad, probabilities_grad):
        addresses += (0 if array is None else array.data,)
        strides += (None if array is None else array[1:],)
        everywhere &= array is None or array.data != 0
    options = (
        label_smoothing,
        label_smoothing / (all_classes or shape[-1]),
        z_loss,
        transform.softcap or 0.0,
        transform.inverse_temperature,
    )
    count, rest = _packed(shape, strides, grad_scale_step, acc_dtype, options, threads)
    if rest is None:
        return False
    if not count:
        return True
    if not everywhere:
        return False
    packed = _pack_addresses(*addresses, index, weight, position_weight, grad_scale, losses, columns)
    if library.rows(packed, rest, library.isa):
        raise MemoryError("unixent: no memory for a row of logits")
    return True


def packed_call(
    shape: tuple[int, ...],
    arrays: tuple[Strided | None, ...],
    grad_scale_step: int,
    acc_dtype: int,
    label_smoothing: float,
    z_loss: float,
    transform: LogitTransform,
    threads: int,
) -> bytes | None:
    """The same call without its addresses, for a caller that learns them later; None where it is not taken.

    Args:
        shape, grad_scale_step, acc_dtype, label_smoothing, z_loss, transform, threads: those of `row_losses`.
        arrays: logits, probabilities and their gradients, by dtype and strides.
    """
    strides = tuple(None if array is None else array[1:] for array in arrays)
    options = (
        label_smoothing,
        label_smoothing / shape[-1],
        z_loss,
        transform.softcap or 0.0,
        transform.inverse_temperature,
    )
    return _packed(shape, strides, grad_scale_step, acc_dtype, options, threads)[1]


@lru_cache(maxsize=256)
def _packed(
    shape: tuple[int, ...],
    arrays: tuple[tuple[int, tuple[int, ...]] | None, ...],
    grad_scale_step: int,
    acc_dtype: int,
    options: tuple[float, ...],
    threads: int,
) -> tuple[int, bytes | None]:
    """The number of positions, and a call without its addresses; None where positions have too many axes."""
    given = [array for array in arrays if array]
    sizes, steps = merged_axes(shape[:-1], list(zip(*[strides for _, strides in given], strict=True)))
    count, num_classes = math.prod(sizes), shape[-1]
    if len(sizes) > MAX_AXES:
        return count, None
    pad = (0,) * (MAX_AXES - len(sizes))
    fields: list[int] = []
    by_array = zip(*steps, strict=True)
    for array in arrays:
        fields += _ABSENT if array is None else (0, array[0], array[1][-1], *next(by_array, ()), *pad)
    fields += (0, 0, 0, 0, 0, 0, grad_scale_step, acc_dtype, num_classes, len(sizes), *sizes, *pad)
    threads = max(1, min(threads, count * num_classes // NUMBERS_PER_THREAD))
    return count, _pack_call(*fields, count, threads, *options)


def merged_axes(
    positions: tuple[int, ...], steps: Sequence[tuple[int, ...]]
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Sizes of the axes of P and each array's stride along them; neighbours that are one axis in memory become one."""
    sizes: list[int] = []
    merged: list[tuple[int, ...]] = []
    for size, inner in zip(positions, steps, strict=False):  # without the classes' axis, the last
        if size == 1:
            continue
        if sizes and all(outer == step * size for outer, step in zip(merged[-1], inner, strict=True)):
            sizes[-1] *= size
            merged[-1] = inner
        else:
            sizes.append(size)
            merged.append(inner)
    return sizes, merged
