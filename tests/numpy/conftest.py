"""What several tests of the NumPy backend share: memory traced, and a model group of threads instead of processes."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import unixent


@pytest.fixture
def peak_memory() -> Callable[[Callable[[], Any]], int]:
    """A function that returns how many bytes a call holds at most."""

    def measure(call: Callable[[], Any]) -> int:
        tracemalloc.start()
        try:
            result = call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert result is not None
        return peak

    return measure


class Exchange:
    """Where the members of a group put a value each, and read those of all."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.values: list[Any] = [None] * size

    def all(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values


class ThreadGroup:
    """One member's view of a group of threads: a `unixent_numpy.collectives.Group` that counts what it reduces."""

    def __init__(self, exchange: Exchange, rank: int) -> None:
        self._exchange, self.rank, self.size = exchange, rank, len(exchange.values)
        self.reduced_bytes = 0

    def all_reduce(self, values: np.ndarray[Any, Any], operation: str) -> np.ndarray[Any, Any]:
        self.reduced_bytes += values.nbytes
        of_all = self._exchange.all(self.rank, values.copy())
        assert len({each.shape for each in of_all}) == 1, "the processes reduce arrays of different shapes"
        return sum(of_all[1:], of_all[0]) if operation == "SUM" else np.maximum.reduce(of_all)

    def all_gather(self, row: tuple[int, ...]) -> list[tuple[int, ...]]:
        return self._exchange.all(self.rank, row)


@pytest.fixture
def run_model_parallel() -> Callable[..., list[Any]]:
    """``run(work, shards)``: what ``work(shard, config)`` returns on each process of a model group."""

    def run(work: Callable[[slice, unixent.ParallelConfig], Any], shards: list[slice]) -> list[Any]:
        size = len(shards)
        exchange = Exchange(size)

        def on_process(rank: int) -> Any:
            group = ThreadGroup(exchange, rank)
            return work(shards[rank], unixent.ParallelConfig(model_parallel=size, model_group=group))

        with ThreadPoolExecutor(size) as pool:
            return list(pool.map(on_process, range(size)))

    return run
