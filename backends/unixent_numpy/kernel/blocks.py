"""Memory: positions as rows, whatever the strides; scratch for each thread; blocks of rows on all cores."""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from unixent.errors import OptionError
from unixent_native import available_cores
from unixent_numpy.compat import Array

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

# A block of this many bytes stays in cache while about six passes go over it, and is long enough that the work between
# two passes, which holds the interpreter lock, does not count.
BLOCK_BYTES = 1 << 21
# Below this many elements a call is over before a second thread has started.
THREADED_ELEMENTS = 1 << 16


class Rows:
    """The positions of ``array``, P + (C,), addressed as rows 0..N-1 in C order without copying it.

    Attributes:
        count: the number of positions N.
        num_classes: C, which may be 0.
        array: the array itself.
    """

    def __init__(self, array: Array) -> None:
        self._positions, self.num_classes = array.shape[:-1], array.shape[-1]
        self.count = math.prod(self._positions)
        self.array = array
        self._flat: Array | None = None
        if array.flags.c_contiguous:
            self._flat = array.reshape(self.count, self.num_classes)
            return
        stride = _common_stride(self._positions, array.strides[:-1])
        if stride is not None:
            shape, strides = (self.count, self.num_classes), (stride, array.strides[-1])
            self._flat = np.lib.stride_tricks.as_strided(array, shape, strides, writeable=array.flags.writeable)

    def _subscripts(self, rows: slice) -> Any:
        return np.unravel_index(np.arange(rows.start, rows.stop), self._positions)

    def read(self, rows: slice, out: Array) -> None:
        """Copy rows into ``out``, widening them to its dtype."""
        source = self.array[self._subscripts(rows)] if self._flat is None else self._flat[rows]
        np.copyto(out, source, casting="unsafe")

    def write(self, rows: slice, block: Array) -> None:
        """Round the block to this array's dtype and store it."""
        if self._flat is None:
            self.array[self._subscripts(rows)] = block
        else:
            self._flat[rows] = block

    def as_scratch(self, dtype: np.dtype[Any]) -> Array | None:
        """The rows as a C-contiguous array of ``dtype`` that may serve as its own scratch, or None."""
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


def num_threads() -> int:
    """``UNIXENT_NUM_THREADS`` where it is set, else the number of cores that this process may use.

    Raises:
        OptionError: the variable is not an int >= 1.
    """
    value = os.environ.get("UNIXENT_NUM_THREADS")
    if value is None:
        return available_cores()
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1:
        raise OptionError(f"UNIXENT_NUM_THREADS: expected an int >= 1; got {value!r}")
    return number


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # threads don't survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _run_on_pool(job: Callable[[], None], count: int) -> list[Future[None]]:
    """Have ``count`` other threads run ``job``; fewer, or none, once main has returned and no thread can start."""
    global _pool
    helpers: list[Future[None]] = []
    with suppress(RuntimeError):
        if count and _pool is None:
            from concurrent.futures import ThreadPoolExecutor  # refuses its first import, too, by then

            _pool = ThreadPoolExecutor(count, thread_name_prefix="unixent")
        while len(helpers) < count and _pool is not None:
            helpers.append(_pool.submit(job))
    return helpers


class RowBlocks:
    """N rows of C classes cut into blocks (what fits in cache, and no more than one core's share), and their scratch.

    Blocks of a given ``size`` are worked in order by the calling thread.

    Attributes:
        size: how many rows a block holds, at most.
    """

    def __init__(self, count: int, num_classes: int, dtype: np.dtype[Any], size: int | None = None) -> None:
        self._count, self._threads = count, num_threads() if size is None else 1
        share = count if count * num_classes < THREADED_ELEMENTS else -(-count // self._threads)
        self.size = (
            min(size, count) if size else max(1, min(BLOCK_BYTES // max(1, num_classes * dtype.itemsize), share))
        )
        self._shape, self._dtype = (self.size, num_classes), dtype
        # One set of blocks for each thread: fresh pages for every block would cost more than the arithmetic.
        self._scratch = threading.local()

    def scratch(self, name: str, rows: slice) -> Array:
        """The calling thread's uninitialised block of that name, one row for each of ``rows``."""
        blocks = self._scratch.__dict__  # of this thread
        if name not in blocks:
            blocks[name] = np.empty(self._shape, self._dtype)
        block: Array = blocks[name][: rows.stop - rows.start]
        return block

    def for_each(self, work: Callable[[slice], None]) -> None:
        """Call ``work(rows)`` for blocks that cover all rows, on all cores where that pays."""
        if self._count <= self.size:
            if self._count:
                work(slice(0, self._count))
            return
        starts = deque(range(0, self._count, self.size))

        def work_off() -> None:
            while starts:
                try:
                    start = starts.popleft()
                except IndexError:  # another thread took the last one
                    return
                work(slice(start, min(start + self.size, self._count)))

        helpers = _run_on_pool(work_off, min(self._threads, len(starts)) - 1)
        try:
            work_off()
        finally:
            for helper in helpers:
                if not helper.cancel():
                    helper.result()
