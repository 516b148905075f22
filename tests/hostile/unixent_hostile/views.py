"""Memory layouts: the same values as a view that somebody could hand over, with poison around what it may read."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Bytes before and behind a view. Their bits are NaN in every floating dtype, -1 or the largest number as an integer.
GUARD = 512


def guarded(array: Array, offset: int = 0) -> Array:
    """A copy in C order between poison, `offset` bytes away from where its items would be aligned."""
    memory = np.full(array.nbytes + 2 * GUARD + offset, 255, np.uint8)
    view: Array = np.ndarray(array.shape, array.dtype, memory.data, GUARD + offset)
    view[...] = array
    return view


def transposed(array: Array, r: Random) -> Array:
    order = r.sample(range(array.ndim), array.ndim)
    view: Array = guarded(array.transpose(order)).transpose(np.argsort(order))
    return view


def sliced(array: Array, r: Random) -> Array:
    steps = [r.choice((1, 2, 3)) for _ in array.shape]
    memory = np.full([size * step for size, step in zip(array.shape, steps, strict=True)], 255, np.uint8)
    memory = np.repeat(memory.reshape(-1), array.itemsize).view(array.dtype).reshape(memory.shape)
    view = memory[tuple(slice(None, None, step) for step in steps)]
    view[...] = array
    return view


def reversed_(array: Array, r: Random) -> Array:
    axes = tuple(axis for axis in range(array.ndim) if r.random() < 0.6) or (0,)
    return np.flip(guarded(np.flip(array, axes)), axes)


def broadcast(array: Array, r: Random) -> Array:
    """Strides of 0: values that were one number along some axes."""
    index = tuple(slice(0, 1) if r.random() < 0.5 else slice(None) for _ in array.shape)
    return np.broadcast_to(guarded(array[index]), array.shape)


def overlapping(array: Array, r: Random) -> Array:
    """Any strides, 0 and negative ones included, that stay inside the memory of `array`."""
    pool = guarded(array.reshape(-1))
    room, first, strides = pool.size - 1, 0, []
    for size in array.shape:
        most = room // max(size - 1, 1)
        step = r.randint(-min(most, 6), min(most, 6))
        room -= abs(step) * (size - 1)
        first += -min(step, 0) * (size - 1)
        strides.append(step)
    items = pool[first + r.randint(0, room) :]
    return np.lib.stride_tricks.as_strided(items, array.shape, [step * array.itemsize for step in strides])


def misaligned(array: Array, r: Random) -> Array:
    return guarded(array, r.choice((1, 3)))


def swapped(array: Array, r: Random) -> Array:
    """The other byte order; bfloat16 has one alone."""
    if array.dtype.kind in "fiu":
        return array.astype(array.dtype.newbyteorder())
    return guarded(array)


def read_only(array: Array, r: Random) -> Array:
    view = guarded(array)
    view.flags.writeable = False
    return view


LAYOUTS = (transposed, transposed, sliced, reversed_, broadcast, broadcast, overlapping, misaligned, swapped, read_only)


def laid_out(array: Array, r: Random) -> Array:
    """A view as one of these; of what it holds, `broadcast` and `overlapping` keep a part."""
    if array.ndim == 0 or not array.size:
        return guarded(array, r.choice((0, 1)))
    return r.choice(LAYOUTS)(array, r)
