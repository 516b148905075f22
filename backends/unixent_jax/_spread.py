"""How a loss lies over the axes of a mesh: what is known of that inside `jax.shard_map`, where the sums are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from unixent.errors import BackendError
from unixent.protocol import Sharding


class Spread(NamedTuple):
    """The axes that classes and positions lie over, each in equal parts. Static."""

    model: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, split: Sharding | None) -> Spread:
        return cls() if split is None else cls(names(split.model_group), names(split.token_group))


def names(group: Any) -> tuple[str, ...]:
    """The axes of a group: a name, or several."""
    if group is None:
        return ()
    return (group,) if isinstance(group, str) else tuple(group)


def size(axes: tuple[str, ...]) -> int:
    """How many devices lie along axes of the surrounding `jax.shard_map`; NameError outside."""
    return int(lax.axis_size(axes))


def bound(axes: Iterable[str]) -> bool:
    """Whether the call is made inside a `jax.shard_map` over any of these axes."""
    return not set(axes).isdisjoint(jax.sharding.get_abstract_mesh().manual_axes)


def varying(array: Array) -> frozenset[str]:
    """The axes of a mesh that an array is known to differ along; none where that is not tracked."""
    kind = jax.typeof(array)
    found = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
    return frozenset(found)


def spread_out(array: Array, axes: Iterable[str]) -> Array:
    """The same array, taken to differ along these axes too: its gradient is summed over them, here and only once."""
    missing = tuple(sorted(set(axes) - varying(array)))
    if not missing:
        return array
    return lax.pcast(array, missing, to="varying") if hasattr(lax, "pcast") else lax.pvary(array, missing)


def expect_spread(name: str, array: Array, axes: tuple[str, ...]) -> None:
    """That ``array`` is a part of a whole, and that its gradient will be summed over what it is the same on."""
    missing = [axis for axis in axes if axis not in varying(array)]
    if missing:
        raise BackendError(
            f"{name}: expected an array that differs along the mesh axes {', '.join(map(repr, axes))} inside "
            f"jax.shard_map; got one that is not known to differ along {', '.join(map(repr, missing))}. With "
            "check_vma=False nothing is known and gradients would be wrong: leave it on"
        )


def summed(axes: tuple[str, ...], *parts: Array) -> tuple[Array, ...]:
    """Sums of scalars over axes, in one message."""
    if not axes:
        return parts
    return tuple(lax.psum(jnp.stack(parts), axes))


def own_share(array: Array, model: tuple[str, ...], count: int) -> Array:
    """This device's ``count`` entries of an array over all classes; the last devices' may be beyond its end, and 0."""
    if not model:
        return array
    padded = jnp.pad(array, (0, size(model) * count - array.shape[0]))
    return lax.dynamic_slice_in_dim(padded, lax.axis_index(model) * count, count)
