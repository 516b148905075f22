"""Whole arrays over the devices of a mesh: one `jax.shard_map` around the loss of each device's part.

Positions lie over the token axes and classes over the model axes. What does not divide is filled up: positions with a
mask of 0, classes with what the loss knows not to count (`_loss.losses`). Gradients pass through that as through any
other operation, so that those of the filling are cut off again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from unixent.protocol import Sharding
from unixent_jax._spread import Spread

Place = tuple[tuple[str, ...], ...]  # the axes of the mesh that each dimension of an array lies over


class Over(NamedTuple):
    """A mesh, and the axes of it that classes, batch and sequence lie over. Static."""

    mesh: Mesh
    model: tuple[str, ...]
    data: tuple[str, ...]
    context: tuple[str, ...]

    def positions(self, rank: int) -> Place:
        """The batch is the first dimension of positions and the sequence the second; a single one is both."""
        if rank == 0:
            return ()
        if rank == 1:
            return (self.data + self.context,)
        return (self.data, self.context, *[()] * (rank - 2))

    def parts(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)


def spread(
    over: Over,
    arrays: dict[str, Array | None],
    places: dict[str, Place],
    positions: tuple[int, ...],
    body: Callable[[Spread, dict[str, Array | None]], Any],
    per_position: bool,
) -> Any:
    """``body`` of every device's part; its result is of the shape of positions, or the same on all devices."""
    rows = over.positions(len(positions))
    uneven = any(size % over.parts(axes) for size, axes in zip(positions, rows, strict=True))
    if uneven and arrays["mask"] is None:
        arrays = {**arrays, "mask": jnp.ones(positions, bool)}
    given = {name: _fit(over, array, places[name]) for name, array in arrays.items() if array is not None}
    tokens = tuple(axis for axes in rows for axis in axes)
    inside = Spread(over.model, tokens)

    def local(own: dict[str, Array]) -> Any:
        return body(inside, {name: own.get(name) for name in arrays})

    result = jax.shard_map(
        local,
        mesh=over.mesh,
        in_specs=({name: _spec(places[name]) for name in given},),
        out_specs=_spec(rows) if per_position else P(),
        axis_names={*over.model, *tokens},
    )(given)
    if per_position and uneven:
        result = _placed(over, result, ((),) * len(positions))[tuple(map(slice, positions))]
    return result


def over_of(split: Sharding) -> Over:
    """The axes of a split whose arrays are whole."""
    own, mesh = Spread.of(split), split.mesh
    assert mesh is not None
    at, parts = len(own.tokens), 1
    while parts < split.context_parallel:
        at -= 1
        parts *= mesh.shape[own.tokens[at]]
    return Over(mesh, own.model, own.tokens[:at], own.tokens[at:])


def _spec(place: Place) -> P:
    return P(*(axes or None for axes in place))


def _fit(over: Over, array: Array, place: Place) -> Array:
    """The array filled up with zeros to what divides, and in its place."""
    missing = [-size % over.parts(axes) for size, axes in zip(array.shape, place, strict=True)]
    if any(missing):
        array = jnp.pad(array, [(0, count) for count in missing])
    return _placed(over, array, place)


def _placed(over: Over, array: Array, place: Place) -> Array:
    """An explicit mesh takes arrays in their place only; under an automatic one the compiler sees to that."""
    if AxisType.Explicit not in over.mesh.axis_types:
        return array
    # jax 0.7 puts an array that is on no mesh there by itself, and cannot transpose it if it is done here.
    if not hasattr(jax, "reshard") and jax.typeof(array).sharding.mesh.empty:
        return array
    return jax.sharding.reshard(array, NamedSharding(over.mesh, _spec(place)))
