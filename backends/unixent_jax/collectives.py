"""Axes of a mesh as groups of devices, and reductions over them, for calls inside `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from unixent.errors import BackendError
from unixent.protocol import Sharding
from unixent_jax import compat


class ShardAxes(NamedTuple):
    """The axes of a mesh that classes and positions are split over, each in equal shards. Static."""

    model: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, sharding: Sharding) -> ShardAxes:
        return cls(axis_names(sharding.model_group), axis_names(sharding.token_group))


def axis_names(group: Any) -> tuple[str, ...]:
    """The axes of a group: a name, or several."""
    if group is None:
        return ()
    return (group,) if isinstance(group, str) else tuple(group)


def axis_size(axes: tuple[str, ...]) -> int:
    """How many devices lie along axes of the surrounding `jax.shard_map`; NameError outside."""
    return int(lax.axis_size(axes))


def inside_shard_map(axes: Iterable[str]) -> bool:
    """Whether the call is made inside a `jax.shard_map` over any of these axes."""
    return not set(axes).isdisjoint(jax.sharding.get_abstract_mesh().manual_axes)


def vary_over(array: Array, axes: Iterable[str]) -> Array:
    """The same array, taken to differ along these axes too: its gradient is summed over them, here and only once."""
    missing = tuple(sorted(set(axes) - compat.varying_axes(array)))
    return compat.cast_to_varying(array, missing) if missing else array


def check_varies(name: str, array: Array, axes: tuple[str, ...]) -> None:
    """That ``array`` is a shard, so that its gradient will be summed over the axes that it is the same along."""
    missing = set(axes) - compat.varying_axes(array)
    if missing:
        raise BackendError(
            f"{name}: expected an array that differs along the mesh axes {', '.join(map(repr, axes))} inside "
            f"jax.shard_map; got one that is not known to differ along {', '.join(map(repr, sorted(missing)))}. With "
            "check_vma=False nothing is known and gradients would be wrong: leave it on"
        )


def sum_scalars(axes: tuple[str, ...], *scalars: Array) -> tuple[Array, ...]:
    """Sums of scalars over axes, in one message."""
    if not axes:
        return scalars
    return tuple(lax.psum(jnp.stack(scalars), axes))


def local_slice(array: Array, axes: tuple[str, ...], num_local: int) -> Array:
    """This device's ``num_local`` entries of an array over all classes; beyond its end the last devices' are 0."""
    missing = (axis_size(axes) if axes else 1) * num_local - array.shape[0]
    padded = jnp.pad(array, (0, missing)) if missing else array
    return lax.dynamic_slice_in_dim(padded, lax.axis_index(axes) * num_local, num_local) if axes else padded
