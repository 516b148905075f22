"""How a problem of global arrays is split over a mesh."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from unixent.protocol import Sharding
from unixent_jax.collectives import ShardAxes

Placement = tuple[tuple[str, ...], ...]  # the axes of the mesh that each dimension of an array is split over


class MeshAxes(NamedTuple):
    """A mesh, and the axes of it that classes, batch and sequence are split over. Static."""

    mesh: Mesh
    model: tuple[str, ...]
    data: tuple[str, ...]
    context: tuple[str, ...]

    @classmethod
    def of(cls, sharding: Sharding) -> MeshAxes:
        axes, mesh = ShardAxes.of(sharding), sharding.mesh
        assert mesh is not None
        start, size = len(axes.tokens), 1
        while size < sharding.context_parallel:
            start -= 1
            size *= mesh.shape[axes.tokens[start]]
        return cls(mesh, axes.model, axes.tokens[:start], axes.tokens[start:])

    def positions(self, rank: int) -> Placement:
        """The batch is the first dimension of positions and the sequence the second; a single one is both."""
        if rank == 0:
            return ()
        if rank == 1:
            return (self.data + self.context,)
        return (self.data, self.context, *[()] * (rank - 2))

    def num_shards(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)


class MeshSpec(NamedTuple):
    """What is static about a call on global arrays.

    Attributes:
        local: the function of (call, prepared arrays) that each device runs on its shards.
        call: a `LossSpec`, `LinearSpec`, `StatsSpec` or `SparseSpec`.
        axes: the mesh.
    """

    local: Callable[[Any, Any], Any]
    call: Any
    axes: MeshAxes
