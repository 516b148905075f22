"""Operations along the class axis of arrays, which may be split over the devices of a mesh.

Everything that reduces over classes, gathers a class or makes an iota over classes is here. Inside `jax.shard_map` a
row may be split over several devices: its sums and maxima are then reduced over the axes of the mesh that share the
classes, and are the same on all of those devices. A maximum may lose a NaN on its way, so NaN is left to the sums.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType


class ClassAxis(NamedTuple):
    """Where the classes of an array are. Static."""

    axis: int
    shard_axes: tuple[str, ...] = ()  # axes of a mesh whose devices share the classes in equal shards, in their order

    @property
    def is_sharded(self) -> bool:
        return bool(self.shard_axes)

    def vocab_start(self, x: Array) -> Array | int:
        """Index of the first class on this device."""
        return lax.axis_index(self.shard_axes) * x.shape[self.axis] if self.shard_axes else 0

    def num_padded_classes(self, x: Array) -> int:
        """The number of classes on all devices, padding included."""
        return x.shape[self.axis] * (lax.axis_size(self.shard_axes) if self.shard_axes else 1)


def is_on_one_device(x: Array) -> bool:
    """Whether no shard of x is on another device, so that gathers and reshapes along the classes are free.

    Under an automatic mesh a trace cannot see how x is sharded: only a process of a single device can be sure, or a
    `jax.shard_map` over all axes, where x is this device's shard. Symbolic dimensions of `jax.export`, which scatters
    do not take, count as not on one device.
    """
    mesh = jax.typeof(x).sharding.mesh
    has_static_shape = all(isinstance(size, int) for size in x.shape)
    is_manual = not mesh.empty and all(axis_type == AxisType.Manual for axis_type in mesh.axis_types)
    return bool(has_static_shape and (is_manual or (jax.device_count() == 1 and mesh.empty)))


def can_gather(x: Array, classes: ClassAxis) -> bool:
    """Whether a class of each row can be gathered or scattered: of a sharded row that would collect every shard."""
    return is_on_one_device(x) and not classes.is_sharded


def tie_to(value: Array, row: Array) -> Array:
    """value, in a way that XLA cannot take for the same in every turn of a loop over rows.

    What it sees to be constant it would broadcast to the size of x ahead of the loop and keep there.
    """
    return lax.optimization_barrier((value, row))[0]


def where_or_zero(condition: Array, x: Array) -> Array:
    """x where the condition holds, 0 elsewhere."""
    return jnp.where(condition, x, tie_to(jnp.zeros((), x.dtype), condition))


def class_indices(x: Array, row: Array, classes: ClassAxis) -> Array:
    """The index of each class, along the class axis."""
    shape = [size if i == classes.axis else 1 for i, size in enumerate(x.shape)]
    return tie_to(lax.broadcasted_iota(jnp.int32, shape, classes.axis) + classes.vocab_start(x), row)


def is_class(x: Array, index: Array, classes: ClassAxis) -> Array:
    """Mask of the class ``index`` of each row, of the shape of x."""
    return class_indices(x, index, classes) == index


def sum_shards(classes: ClassAxis, *sums: Array) -> tuple[Array, ...]:
    """The sums over all devices of what each has summed by itself, with the class axis kept as 1."""
    if not classes.is_sharded:
        return sums
    # One array, so that one message carries them.
    joined = jnp.concatenate(jnp.broadcast_arrays(*sums), classes.axis)
    return tuple(jnp.split(lax.psum(joined, classes.shard_axes), len(sums), classes.axis))


def sum_over_classes(x: Array, classes: ClassAxis) -> Array:
    return sum_shards(classes, jnp.sum(x, classes.axis, keepdims=True))[0]


def max_over_classes(x: Array, classes: ClassAxis) -> Array:
    """The maximum over all classes, which has no derivative."""
    top = jnp.max(x, classes.axis, keepdims=True)
    return lax.pmax(lax.stop_gradient(top), classes.shard_axes) if classes.is_sharded else top


def max_and_argmax(x: Array, classes: ClassAxis) -> tuple[Array, Array]:
    """The maximum and the first class that holds it; any class where the row is NaN.

    Two plain reductions: of a sharded row, `jnp.argmax` collects every shard's maximum. XLA may form x in each of them
    anew, with another rounding: where no class holds the maximum to the bit, it is the first one that comes near.
    """
    top = max_over_classes(x, classes)
    indices = class_indices(x, top, classes)
    count = tie_to(jnp.full((), classes.num_padded_classes(x), jnp.int32), top)
    near = top - jnp.maximum(0.125, 16 * jnp.finfo(x.dtype).eps * jnp.abs(top))
    rank = jnp.where(x == top, indices, indices + jnp.where(x >= near, count, 2 * count))
    first = jnp.min(rank, classes.axis, keepdims=True)
    first = lax.pmin(first, classes.shard_axes) if classes.is_sharded else first
    return top, first % count


def local_take(x: Array, index: Array, classes: ClassAxis) -> Array:
    """x at the class ``index`` of each row where this device holds it, else 0."""
    if can_gather(x, classes):
        return jnp.take_along_axis(x, index, classes.axis, mode="promise_in_bounds")
    return jnp.sum(jnp.where(is_class(x, index, classes), x, 0), classes.axis, keepdims=True)


def take(x: Array, index: Array, classes: ClassAxis) -> Array:
    """x at the class ``index`` of each row."""
    return sum_shards(classes, local_take(x, index, classes))[0]


def zero_at(x: Array, index: Array, classes: ClassAxis) -> Array:
    """x with 0 at the class ``index`` of each row."""
    if can_gather(x, classes):
        zero = jnp.zeros((), x.dtype)
        return jnp.put_along_axis(x, index, zero, classes.axis, inplace=False, mode="promise_in_bounds")
    return jnp.where(is_class(x, index, classes), 0, x)


def along_classes(weight: Array, x: Array, classes: ClassAxis) -> Array:
    """A weight of each class, to broadcast against x."""
    return weight.reshape([-1 if i == classes.axis else 1 for i in range(x.ndim)])


def target_weight(weight: Array, index: Array, x: Array, classes: ClassAxis) -> Array:
    """w_y of each position, P, for the weight (C,) of the whole vocabulary."""
    # Inside `jax.shard_map` all of it is at hand.
    if classes.is_sharded or is_on_one_device(x):
        return weight[index]
    per_class = jnp.broadcast_to(along_classes(weight, x, classes), x.shape)
    return jnp.squeeze(take(per_class, jnp.expand_dims(index, classes.axis), classes), classes.axis)
