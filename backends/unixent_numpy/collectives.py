"""Groups of processes: mpi4py communicators, or any object that reduces NumPy arrays over its processes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from unixent_numpy.compat import Array


@runtime_checkable
class Group(Protocol):
    """What this backend asks of a group: an engine other than MPI brings its own.

    All processes of a group make the same calls in the same order, with arrays of the same shape and dtype.

    Attributes:
        rank: the number of this process, from 0.
        size: how many processes there are.
    """

    rank: int
    size: int

    def all_reduce(self, values: Array, operation: str) -> Array:
        """The elementwise "SUM" or "MAX" over all processes, of float32 or float64; ``values`` may be overwritten."""
        ...

    def all_gather(self, row: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The rows of all processes, in the order of their ranks."""
        ...


class MpiGroup:
    """The processes of an mpi4py communicator; mpi4py is imported where a loss is split and nowhere else."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()

    def all_reduce(self, values: Array, operation: str) -> Array:
        from mpi4py import MPI

        values = np.array(values, order="C")
        self._communicator.Allreduce(MPI.IN_PLACE, values, op=getattr(MPI, operation))
        return values

    def all_gather(self, row: tuple[int, ...]) -> list[tuple[int, ...]]:
        rows: list[tuple[int, ...]] = self._communicator.allgather(row)
        return rows


def group_of(handle: Any) -> Group:
    """The group behind a handle: itself, or an mpi4py communicator."""
    return handle if isinstance(handle, Group) else MpiGroup(handle)


def all_reduce(values: Array, handle: Any, operation: str) -> Array:
    """``values`` reduced with "SUM" or "MAX" over a group; the same array where there is none."""
    return values if handle is None else group_of(handle).all_reduce(values, operation)
