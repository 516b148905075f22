"""What differs between the releases of JAX that are served (0.7.1 and newer): the newest name first, then the older."""

from __future__ import annotations

from collections.abc import Iterable

import jax
from jax import Array, lax


def varying_axes(array: Array) -> frozenset[str]:
    """The axes of a mesh that an array is known to differ along inside `jax.shard_map`; none where that is not tracked.

    JAX 0.7 keeps them in ``vma``.
    """
    aval = jax.typeof(array)
    return frozenset(aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma)


def cast_to_varying(array: Array, axes: Iterable[str]) -> Array:
    """The same array, typed as one that differs along ``axes`` too. JAX 0.7 calls that ``pvary``."""
    names = tuple(axes)
    return lax.pcast(array, names, to="varying") if hasattr(lax, "pcast") else lax.pvary(array, names)


def places_arrays_by_itself(array: Array) -> bool:
    """Whether JAX puts an array that is on no mesh there by itself, and could not transpose it if we did: JAX 0.7."""
    return not hasattr(jax, "reshard") and jax.typeof(array).sharding.mesh.empty
