"""What a row of logits is boiled down to, and how: the only place that reduces over classes.

Everything about a row is said relative to one of its classes, the pivot k (the target, or the argmax where the target
is mixed). Its own exponential is left out of the sum and kept as a scalar, so that a confident row keeps its relative
accuracy. With a shift h, e_c = exp(x_c - h), e_k := 0, r = sum_c e_c and d = h - x_k,

    d <= 0    t = r exp(d);    L_k = log1p(t);                 1 - p_k = t/(1 + t)
    d >  0    b = exp(-d);     L_k = d + log(r + b);           1 - p_k = r/(r + b)

XLA on CPU runs a plain reduction as one fused kernel but materialises whatever is selected by a mask, so the pivot is
left out in one of two ways: where the exponentials are needed anyway (for the gradient) they are masked as they are
formed and the rounding error of x_c - h is made good; where only the sum is needed, blocks of classes are summed
unmasked and the pivot's block is redone. docs/jax.md has the measurements.

Inside `jax.shard_map` a row may lie on several devices. Its statistics are then reduced over the axes of the mesh that
share the classes, and are the same on all of those devices. A maximum may lose a NaN on its way, so NaN is left to
travel in the sums.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType

# A row whose pivot holds the maximum by far would push every other exponential into the subnormals, which XLA flushes
# to zero; its shift is lowered by this much, which still cannot overflow a sum.
_HEADROOM = {"float32": 60.0, "float64": 600.0}


class Classes(NamedTuple):
    """Where the classes of an array lie."""

    axis: int
    group: tuple[str, ...] = ()  # axes of a mesh whose devices share the classes in equal parts, in their order

    @property
    def shared(self) -> bool:
        return bool(self.group)

    def first(self, x: Array) -> Array | int:
        """Index of the first class on this device."""
        return lax.axis_index(self.group) * x.shape[self.axis] if self.group else 0

    def count(self, x: Array) -> int:
        """The number of classes on all devices, padding included."""
        return x.shape[self.axis] * (lax.axis_size(self.group) if self.group else 1)


class Pivot(NamedTuple):
    """The scalars of each row, with the class axis kept as 1."""

    loss: Array  # L_k = lse - x_k
    lse: Array
    scale: Array  # p_c = scale * e_c for c != k
    probability: Array  # p_k
    complement: Array  # 1 - p_k


def alone(x: Array) -> bool:
    """Whether no part of x is on another device, so that gathers and reshapes along the classes are free.

    Under an automatic mesh a trace cannot see how x is sharded: only a process of a single device can be sure, or a
    `jax.shard_map` over all axes, where x is this device's part. Symbolic dimensions of `jax.export`, which scatters do
    not take, count as not alone.
    """
    mesh = jax.typeof(x).sharding.mesh
    known = all(isinstance(size, int) for size in x.shape)
    manual = not mesh.empty and all(kind == AxisType.Manual for kind in mesh.axis_types)
    return bool(known and (manual or (jax.device_count() == 1 and mesh.empty)))


def anchored(value: Array, row: Array) -> Array:
    """value, in a way that XLA cannot take for the same in every turn of a loop over rows.

    What it sees to be constant it would spread to the size of x ahead of the loop and keep there.
    """
    return lax.optimization_barrier((value, row))[0]


def select(live: Array, x: Array) -> Array:
    """x in live rows, 0 in the others."""
    return jnp.where(live, x, anchored(jnp.zeros((), x.dtype), live))


def hits(x: Array, y: Array, classes: Classes) -> Array:
    """Mask of the class y of each row."""
    return indices(x, y, classes) == y


def indices(x: Array, row: Array, classes: Classes) -> Array:
    """The index of each class."""
    own = [size if i == classes.axis else 1 for i, size in enumerate(x.shape)]
    here = lax.broadcasted_iota(jnp.int32, own, classes.axis) + classes.first(x)
    return anchored(here, row)


def totals(classes: Classes, *parts: Array) -> tuple[Array, ...]:
    """The sums over all devices of what each has summed by itself, with the class axis kept as 1."""
    if not classes.shared:
        return parts
    # One array, so that one message carries them.
    joined = jnp.concatenate(jnp.broadcast_arrays(*parts), classes.axis)
    return tuple(jnp.split(lax.psum(joined, classes.group), len(parts), classes.axis))


def total(x: Array, classes: Classes) -> Array:
    """The sum over all classes."""
    return totals(classes, jnp.sum(x, classes.axis, keepdims=True))[0]


def largest(x: Array, classes: Classes) -> Array:
    """The maximum over all classes, which has no derivative."""
    top = jnp.max(x, classes.axis, keepdims=True)
    return lax.pmax(lax.stop_gradient(top), classes.group) if classes.shared else top


def part(x: Array, y: Array, classes: Classes) -> Array:
    """x at the class y of each row where this device holds it, else 0.

    A sharded row is summed under a mask: a gather would collect it on one device.
    """
    if alone(x) and not classes.shared:
        return jnp.take_along_axis(x, y, classes.axis, mode="promise_in_bounds")
    return jnp.sum(jnp.where(hits(x, y, classes), x, 0), classes.axis, keepdims=True)


def pick(x: Array, y: Array, classes: Classes) -> Array:
    """x at the class y of each row."""
    return totals(classes, part(x, y, classes))[0]


def peak(x: Array, classes: Classes) -> tuple[Array, Array]:
    """The maximum and the first class that holds it; any class where the row is NaN.

    Two plain reductions: of a sharded row, `jnp.argmax` collects every shard's maximum.
    """
    top = largest(x, classes)
    here = indices(x, top, classes)
    last = anchored(jnp.full((), classes.count(x) - 1, jnp.int32), top)
    first = jnp.min(jnp.where(x == top, here, last), classes.axis, keepdims=True)
    return top, lax.pmin(first, classes.group) if classes.shared else first


def erase(x: Array, y: Array, classes: Classes) -> Array:
    """x with 0 at the class y of each row."""
    if alone(x) and not classes.shared:
        return jnp.put_along_axis(x, y, jnp.zeros((), x.dtype), classes.axis, inplace=False, mode="promise_in_bounds")
    return jnp.where(hits(x, y, classes), 0, x)


def below(top: Array) -> Array:
    """The shift of a row whose pivot holds its maximum."""
    return jnp.floor(top) - jnp.asarray(_HEADROOM[top.dtype.name], top.dtype)


def raised(x: Array, shift: Array) -> Array:
    """exp(x - shift), for a shift that is a whole number: adding that back is exact, so that the rounding error of the
    difference is had in two operations."""
    high = x - shift
    low = x - (high + shift)
    e = jnp.exp(high)
    return select(high != -jnp.inf, e + e * low)


def exponentials(x: Array, pivot: Array, classes: Classes) -> tuple[Array, Pivot]:
    """e with the pivot's entry 0, and the scalars."""
    x_k = pick(x, pivot, classes)
    top = largest(x, classes)
    shift = jnp.where(x_k == top, below(top), jnp.floor(top))
    e = erase(raised(x, shift), pivot, classes)
    return e, scalars_of(x_k, shift, total(e, classes))


def scalars(x: Array, pivot: Array, classes: Classes) -> Pivot:
    """The scalars alone: nothing of the size of x is written where the classes can be split into blocks."""
    axis = classes.axis
    block = _block_size(x.shape[axis]) if alone(x) and not classes.shared else None
    if block is None:
        return exponentials(x, pivot, classes)[1]
    blocks = x.reshape(*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
    index = jnp.expand_dims(pivot // block, axis)
    own = jnp.take_along_axis(blocks, index, axis, mode="promise_in_bounds")
    within, inner = jnp.expand_dims(pivot % block, axis), axis + 1
    at_pivot = hits(own, within, Classes(inner))
    x_k = jnp.sum(jnp.where(at_pivot, own, 0), inner, keepdims=True)

    tops = jnp.max(blocks, inner, keepdims=True)
    is_own = hits(tops, index, Classes(axis))
    top = jnp.max(jnp.where(is_own, -jnp.inf, tops), axis, keepdims=True)
    top = jnp.maximum(top, jnp.max(jnp.where(at_pivot, -jnp.inf, own), inner, keepdims=True))
    shift = jnp.where(top == -jnp.inf, x_k, top)

    # The pivot's block may overflow here, which is why it is dropped by a mask and not subtracted.
    sums = jnp.sum(jnp.exp(blocks - shift), inner, keepdims=True)
    rest = jnp.sum(jnp.where(is_own, 0, sums), axis, keepdims=True)
    rest = rest + jnp.sum(jnp.where(at_pivot, 0, jnp.exp(own - shift)), inner, keepdims=True)
    x_k, shift, rest = (jnp.squeeze(value, axis) for value in (x_k, shift, rest))
    return scalars_of(x_k, shift, rest)


def _block_size(classes: int) -> int | None:
    """The divisor of the number of classes nearest to 256, if there is one that splits it to any purpose."""
    return min(
        (size for size in range(32, 4097) if classes % size == 0 and classes > size),
        key=lambda size: abs(size - 256),
        default=None,
    )


def scalars_of(x_k: Array, shift: Array, rest: Array) -> Pivot:
    """The scalars from the pivot's logit, the shift and the sum of the other exponentials."""
    x_k = jnp.where(x_k == jnp.inf, jnp.nan, x_k)
    high = shift - x_k
    back = high - shift
    low = (shift - (high - back)) - (x_k + back)
    low = jnp.where(jnp.isfinite(high), low, 0)
    near = jnp.exp(-jnp.abs(high))
    far = high > 0

    near = near * jnp.where(far, 1 - low, 1 + low)
    t = rest * near
    total = jnp.where(far, rest + near, 1 + t)
    spread = jnp.where(far, low + jnp.log(rest + near), jnp.log1p(t))
    return Pivot(
        loss=jnp.where(far, high, 0) + spread,
        lse=jnp.where(far, shift, x_k) + spread,
        scale=jnp.where(far, 1, near) / total,
        probability=jnp.where(far, near, 1) / total,
        complement=jnp.where(far, rest, t) / total,
    )
