"""Global arrays over the devices of a mesh: one `jax.shard_map` around the loss of each device's shard.

Positions are split over the token axes and classes over the model axes. What does not divide is padded: positions with
a mask of 0, classes with padding that the kernel masks. Gradients pass through that as through any other operation, so
that those of the padding are cut off again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from unixent_jax import compat
from unixent_jax.collectives import ShardAxes
from unixent_jax.logits.problem import LossSpec
from unixent_jax.vocab_parallel.problem import MeshAxes, Placement


def map_shards(
    axes: MeshAxes,
    arrays: dict[str, Array | None],
    placements: dict[str, Placement],
    positions: tuple[int, ...],
    body: Callable[[ShardAxes, dict[str, Array | None]], Any],
    loss: LossSpec,
) -> Any:
    """``body`` of every device's shards; its results begin with the shape of positions, or are the same on all."""
    rows = axes.positions(len(positions))
    per_position = loss.reduction == "none"
    is_uneven = any(size % axes.num_shards(names) for size, names in zip(positions, rows, strict=True))
    if is_uneven and arrays["mask"] is None:
        arrays = {**arrays, "mask": jnp.ones(positions, loss.kernel.acc_dtype)}
    given = {name: _pad(axes, array, placements[name]) for name, array in arrays.items() if array is not None}
    token_axes = tuple(name for names in rows for name in names)

    def of_shards(shards: dict[str, Array]) -> Any:
        return body(ShardAxes(axes.model, token_axes), {name: shards.get(name) for name in arrays})

    result = jax.shard_map(
        of_shards,
        mesh=axes.mesh,
        in_specs=({name: _spec(placements[name]) for name in given},),
        out_specs=_spec(rows) if per_position else P(),
        axis_names={*axes.model, *token_axes},
    )(given)
    if per_position and is_uneven:
        inside = tuple(map(slice, positions))
        result = jax.tree.map(lambda array: _place(axes, array, ((),) * array.ndim)[inside], result)
    return result


def _spec(placement: Placement) -> P:
    return P(*(names or None for names in placement))


def _pad(axes: MeshAxes, array: Array, placement: Placement) -> Array:
    """The array padded with zeros to what divides, and in its place."""
    missing = [-size % axes.num_shards(names) for size, names in zip(array.shape, placement, strict=True)]
    if any(missing):
        array = jnp.pad(array, [(0, count) for count in missing])
    return _place(axes, array, placement)


def _place(axes: MeshAxes, array: Array, placement: Placement) -> Array:
    """An explicit mesh takes arrays in their place only; under an automatic one the compiler sees to that."""
    if AxisType.Explicit not in axes.mesh.axis_types or compat.places_arrays_by_itself(array):
        return array
    return jax.sharding.reshard(array, NamedSharding(axes.mesh, _spec(placement)))
