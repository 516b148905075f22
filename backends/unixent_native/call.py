"""A call of the library: arrays as addresses and strides, packed the way ``source/call.h`` reads them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from unixent_native.library import Library

#: Codes of the dtypes that the library reads and writes; float32 and float64 are those it computes in.
DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}

MAX_AXES = 8
# Below so many numbers a thread, a call is over before another thread has started.
NUMBERS_PER_THREAD = 1 << 15

_pack = struct.Struct(f"{4 * (3 + MAX_AXES)}q 9q {MAX_AXES}q 2q 3d").pack
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
    softcap: float | None,
    threads: int,
) -> bool:
    """The losses of positions P, and the gradients that are asked for. Numbers are addresses, 0 where there is nothing.

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
        label_smoothing, z_loss, softcap: the options.
        threads: the most threads to use.

    Returns:
        Whether it was done. Not taken are arrays at no address, and positions along more than `MAX_AXES` strides.

    Raises:
        MemoryError: no memory for a row of each thread.
    """
    arrays = (x, probabilities, x_grad, probabilities_grad)
    positions, num_classes = shape[:-1], shape[-1]
    given = [array.strides for array in arrays if array is not None]
    if len(positions) > 1:
        axes = merged_axes(positions, given)
        if len(axes) > MAX_AXES:
            return False
    else:
        axes = [(size, [strides[0] for strides in given]) for size in positions]
    count = 1
    for size, _ in axes:
        count *= size
    if not count:
        return True
    if not losses or not all(array.data for array in arrays if array is not None):
        return False
    pad = (0,) * (MAX_AXES - len(axes))
    fields: list[int] = []
    nth = 0
    for array in arrays:
        if array is None:
            fields += _ABSENT
        else:
            fields += (array.data, array.dtype, array.strides[-1], *[strides[nth] for _, strides in axes], *pad)
            nth += 1
    fields += (index, weight, position_weight, grad_scale, losses)
    fields += (grad_scale_step, acc_dtype, num_classes, len(axes), *[size for size, _ in axes], *pad)
    threads = max(1, min(threads, count * num_classes // NUMBERS_PER_THREAD))
    packed = _pack(*fields, count, threads, label_smoothing, z_loss, softcap or 0.0)
    if library.rows(packed, library.isa):
        raise MemoryError("unixent: no memory for a row of logits")
    return True


def merged_axes(positions: tuple[int, ...], strides: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Sizes of the axes of P and each array's stride along them; neighbours that are one axis in memory become one."""
    axes: list[tuple[int, list[int]]] = []
    for axis, size in enumerate(positions):
        steps = [each[axis] for each in strides]
        if size == 1:
            continue
        if axes and all(outer == step * size for outer, step in zip(axes[-1][1], steps, strict=True)):
            axes[-1] = (axes[-1][0] * size, steps)
        else:
            axes.append((size, steps))
    return axes
