"""Arrays that are read from memory as if they lay there one element after the other, as users have reported."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_mutants.plain import Plain, mutant


@mutant("memory layout")
class RowsTakenToBeAdjacent(Plain):
    """Where the classes are adjacent, so are the rows taken to be (TransformerEngine #2734)."""

    def solve(self, x: Array, *args: Any) -> tuple[Any, Any]:
        return super().solve(adjacent(x) if x.ndim > 1 and x.size else x, *args)


@mutant("memory layout")
class TargetsTakenToBeAdjacent(Plain):
    """Targets are read one after the other, whatever their strides (unsloth #10713)."""

    def solve(self, x: Array, target: Array, *args: Any) -> tuple[Any, Any]:
        return super().solve(x, adjacent(target, last=False) if target.ndim and target.size else target, *args)


def adjacent(array: Array, last: bool = True) -> Array:
    """What lies in memory from the array's first element on, as far as it goes, then from the start again."""
    if last and array.strides[-1] != array.itemsize:
        return array
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not root.flags.c_contiguous:
        return array
    flat = root.reshape(-1)
    first = (array.__array_interface__["data"][0] - root.__array_interface__["data"][0]) // array.itemsize
    return np.asarray(flat[(first + np.arange(array.size)) % len(flat)].reshape(array.shape))
