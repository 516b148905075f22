"""What a sharded loss costs against gathering the logits: the model, and a measurement of it on this machine.

    python benchmarks/parallel_cost.py                                      # the model, to 1,024 processes
    mpiexec -iface lo -n 4 python -m mpi4py benchmarks/parallel_cost.py     # the model beside what NumPy over MPI does

A position of V classes, sharded over T processes, costs a process (b bytes per logit, p numbers per position: 3 for
class indices, 4 with label smoothing, 7 for probabilities):

    numbers reduced   p                      wire, sent by a ring   2 (T - 1) / T * 4 p bytes
    memory            V / T * b: the gradient         arithmetic   2 V / T exponentials, value and gradient

and, if the logits are gathered first and the loss is computed on all of them:

    wire, received    (T - 1) / T * V b      memory   V b gathered + V b gradient      arithmetic   V exponentials
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import unixent
from measuring import traced_peak
from unixent_numpy.collectives import MpiGroup

NUMBERS = {"indices": 3, "indices, smoothed": 4, "probabilities": 7}


@dataclass(frozen=True)
class Cost:
    """Of one position on one process: bytes on the wire, bytes of memory, exponentials."""

    wire: float
    memory: float
    exponentials: float


def split(classes: int, processes: int, numbers: int = 3, itemsize: int = 4) -> Cost:
    return Cost(2 * (processes - 1) / processes * 4 * numbers, classes / processes * itemsize, 2 * classes / processes)


def gathered(classes: int, processes: int, itemsize: int = 4) -> Cost:
    return Cost((processes - 1) / processes * classes * itemsize, 2 * classes * itemsize, classes)


def size(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"


def print_model(classes: int, positions: int) -> None:
    print(f"{positions:,} positions of {classes:,} classes in float32, class indices, per process\n")
    print("| processes | bytes, sharded | bytes, gathered | memory, sharded | memory, gathered | exponentials of all |")
    print("|---:|---:|---:|---:|---:|---:|")
    for exponent in range(1, 11):
        processes = 2**exponent
        ours, theirs = split(classes, processes), gathered(classes, processes)
        cells = [f"{processes:,}", *(size(cost * positions) for cost in (ours.wire, theirs.wire))]
        cells += [size(cost * positions) for cost in (ours.memory, theirs.memory)]
        print(f"| {' | '.join(cells)} | 2/{processes:,} |")


class Counting:
    """A group that counts the bytes that it is given to reduce: `unixent_numpy`'s own kind of group, around MPI's."""

    def __init__(self, communicator: Any) -> None:
        self._group, self.reduced = MpiGroup(communicator), 0
        self.rank, self.size = self._group.rank, self._group.size

    def all_reduce(self, values: Any, operation: str) -> Any:
        self.reduced += values.nbytes
        return self._group.all_reduce(values, operation)

    def all_gather(self, row: tuple[int, ...]) -> list[tuple[int, ...]]:
        return self._group.all_gather(row)


def seconds(world: Any, forms: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Medians, the forms in turn; all processes start each call together."""
    times: list[list[float]] = [[] for _ in forms]
    for _ in range(rounds):
        for form, form_seconds in zip(forms, times, strict=True):
            world.Barrier()
            start = time.perf_counter()
            form()
            world.Barrier()
            form_seconds.append(time.perf_counter() - start)
    return [statistics.median(form_seconds) for form_seconds in times]


def measure(world: Any, classes: int, positions: int, rounds: int) -> None:
    processes, rank = world.Get_size(), world.Get_rank()
    rng = np.random.default_rng(0)
    own = np.random.default_rng(1 + rank).standard_normal((positions, classes // processes)).astype(np.float32)
    index = rng.integers(classes // processes * processes, size=positions)
    shares = {"indices": index, "indices, smoothed": index, "probabilities": np.full_like(own, 1 / classes)}
    first = rank * own.shape[1]

    def of(name: str, group: Any) -> Any:
        config = unixent.ParallelConfig(model_parallel=processes, model_group=group)
        smoothing = 0.1 if "smoothed" in name else 0.0
        return unixent.value_and_grad(own, shares[name], label_smoothing=smoothing, parallel=config)

    def gather() -> Any:
        parts = np.empty((processes, *own.shape), own.dtype)
        world.Allgather(own, parts)
        loss, gradient = unixent.value_and_grad(np.concatenate(parts, axis=1), index)
        return loss, gradient[:, first : first + own.shape[1]]

    np.testing.assert_allclose(of("indices", world)[0], gather()[0], rtol=1e-6)
    if rank == 0:
        print(f"{positions:,} positions of {classes:,} classes over {processes} processes, float32\n")
        print("| form | numbers per position | predicted | memory / local logits | predicted |")
        print("|---|---:|---:|---:|---:|")
    for name, numbers in NUMBERS.items():
        counting = Counting(world)
        memory = traced_peak(partial(of, name, counting)) / own.nbytes
        if rank == 0:
            print(f"| sharded, {name} | {counting.reduced / 4 / positions:.2f} | {numbers} | {memory:.2f} | 1 |")
    memory = traced_peak(gather) / own.nbytes
    if rank == 0:
        # NumPy gathers into one array and puts the parts in order in another, hence one more than the model says.
        print(f"| gathered | | | {memory:.2f} | {2 * processes} + {processes} |")
    ours, theirs = seconds(world, [lambda: of("indices", world), gather], rounds)
    if rank == 0:
        print(f"\ntime sharded {1e3 * ours:.1f} ms, gathered {1e3 * theirs:.1f} ms, ratio {ours / theirs:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int)
    parser.add_argument("--positions", type=int)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    try:
        from mpi4py import MPI
    except ImportError:
        world = None
    else:
        world = MPI.COMM_WORLD
    if world is None or world.Get_size() == 1:
        print_model(options.classes or 262_144, options.positions or 4096)
    else:
        measure(world, options.classes or 32_000, options.positions or 1024, options.rounds)


if __name__ == "__main__":
    main()
