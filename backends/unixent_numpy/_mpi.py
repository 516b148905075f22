"""Reductions over mpi4py communicators, which is imported where a loss is split and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_numpy._layout import Array


def all_reduce(values: Array, group: Any, operation: str) -> Array:
    """``values`` reduced with "SUM" or "MAX" over a communicator; the same array where there is no group."""
    if group is None:
        return values
    from mpi4py import MPI

    values = np.array(values, order="C")
    group.Allreduce(MPI.IN_PLACE, values, op=getattr(MPI, operation))
    return values
