"""Positions as rows, whatever the strides; and blocks of rows on all cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# A block of this many bytes stays in cache while about six passes go over it, and is long enough that the work between
# two passes, which holds the interpreter lock, does not count.
BLOCK_BYTES = 1 << 21
# Below this many elements a call is over before a second thread has started.
THREADED_ELEMENTS = 1 << 16


class Rows:
    """The positions of ``array``, classes along ``axis``, addressed as rows 0..N-1 in C order without copying it."""

    def __init__(self, array: Array, axis: int) -> None:
        moved = np.moveaxis(array, axis, -1)
        self.classes = moved.shape[-1]
        self.count = int(np.prod(moved.shape[:-1], dtype=np.int64))
        self._positions = moved.shape[:-1]
        stride = _common_stride(self._positions, moved.strides[:-1])
        self._flat: Array | None = None
        if stride is not None:
            self._flat = np.lib.stride_tricks.as_strided(
                moved, (self.count, self.classes), (stride, moved.strides[-1]), writeable=array.flags.writeable
            )
        self._moved = moved

    def _where(self, start: int, stop: int) -> Any:
        return np.unravel_index(np.arange(start, stop), self._positions)

    def read(self, start: int, stop: int, out: Array) -> None:
        """Copy rows into ``out``, widening them to its dtype."""
        source = self._moved[self._where(start, stop)] if self._flat is None else self._flat[start:stop]
        np.copyto(out, source, casting="unsafe")

    def write(self, start: int, stop: int, block: Array) -> None:
        """Round the block to this array's dtype and store it."""
        if self._flat is None:
            self._moved[self._where(start, stop)] = block
        else:
            self._flat[start:stop] = block

    def in_place(self, dtype: Any) -> Array | None:
        """These rows as a C-contiguous array of ``dtype`` that may serve as its own scratch, or None."""
        flat = self._flat
        return flat if flat is not None and flat.flags.c_contiguous and flat.dtype == dtype else None


def _common_stride(shape: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The one stride that steps through all of ``shape`` in C order, or None where there is none."""
    stride = 0
    expected: int | None = None  # no axis longer than 1 seen yet; a stride of 0 is one like any other
    for size, step in zip(reversed(shape), reversed(strides), strict=True):
        if size == 1:
            continue
        if expected is None:
            stride = step
        elif step != expected:
            return None
        expected = step * size
    return stride


def _cores() -> int:
    if "UNIXENT_NUM_THREADS" in os.environ:
        return max(1, int(os.environ["UNIXENT_NUM_THREADS"]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # threads don't survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


class Scratch:
    """Blocks of one shape, one set for each thread: fresh pages for every block would cost more than the arithmetic."""

    def __init__(self, rows: int, classes: int, dtype: np.dtype[Any]) -> None:
        self._shape, self._dtype = (rows, classes), dtype
        self._own = threading.local()

    def block(self, name: str, rows: int) -> Array:
        """The calling thread's uninitialised block of that name."""
        found = getattr(self._own, name, None)
        if found is None:
            found = np.empty(self._shape, self._dtype)
            setattr(self._own, name, found)
        return found[:rows]


def rows_per_block(rows: int, classes: int, itemsize: int) -> int:
    """How many rows a block holds: what fits in cache, and no more than one core's share."""
    fitting = max(1, BLOCK_BYTES // (classes * itemsize))
    return max(1, min(fitting, rows if rows * classes < THREADED_ELEMENTS else -(-rows // _cores())))


def for_each_block(rows: int, step: int, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` for blocks of ``step`` rows that cover all ``rows``, on all cores where that pays."""
    global _pool
    blocks = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    cores = _cores()
    if cores == 1 or len(blocks) == 1:
        for block in blocks:
            work(*block)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(cores, thread_name_prefix="unixent")
    for _ in _pool.map(lambda block: work(*block), blocks):
        pass
