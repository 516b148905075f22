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
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# A row whose pivot holds the maximum by far would push every other exponential into the subnormals, which XLA flushes
# to zero; its shift is lowered by this much, which still cannot overflow a sum.
_HEADROOM = {"float32": 60.0, "float64": 600.0}


class Pivot(NamedTuple):
    """The scalars of each row, with the class axis kept as 1."""

    loss: Array  # L_k = lse - x_k
    lse: Array
    scale: Array  # p_c = scale * e_c for c != k
    probability: Array  # p_k
    complement: Array  # 1 - p_k


def alone(x: Array) -> bool:
    """Whether no part of x can be on another device, so that gathers and reshapes along the classes are free.

    Under an automatic mesh a trace cannot see how x is sharded: only a process of a single device can be sure. Symbolic
    dimensions of `jax.export`, which scatters do not take, count as not alone.
    """
    known = all(isinstance(size, int) for size in x.shape)
    return bool(known and jax.device_count() == 1 and jax.typeof(x).sharding.mesh.empty)


def anchored(value: Array, row: Array) -> Array:
    """value, in a way that XLA cannot take for the same in every turn of a loop over rows.

    What it sees to be constant it would spread to the size of x ahead of the loop and keep there.
    """
    return lax.optimization_barrier((value, row))[0]


def select(live: Array, x: Array) -> Array:
    """x in live rows, 0 in the others."""
    return jnp.where(live, x, anchored(jnp.zeros((), x.dtype), live))


def hits(x: Array, y: Array, axis: int) -> Array:
    """Mask of the class y of each row."""
    return _classes(x, y, axis) == y


def _classes(x: Array, row: Array, axis: int) -> Array:
    own = [size if i == axis else 1 for i, size in enumerate(x.shape)]
    return anchored(lax.broadcasted_iota(jnp.int32, own, axis), row)


def pick(x: Array, y: Array, axis: int) -> Array:
    """x at the class y of each row. A sharded row is summed under a mask: a gather would collect it on one device."""
    if alone(x):
        return jnp.take_along_axis(x, y, axis, mode="promise_in_bounds")
    return jnp.sum(jnp.where(hits(x, y, axis), x, 0), axis, keepdims=True)


def argmax(x: Array, axis: int) -> Array:
    """The first class that holds the maximum; any class where the row is NaN.

    Two plain reductions: of a sharded row, `jnp.argmax` collects every shard's maximum.
    """
    top = jnp.max(x, axis, keepdims=True)
    last = anchored(jnp.full((), x.shape[axis] - 1, jnp.int32), top)
    return jnp.min(jnp.where(x == top, _classes(x, top, axis), last), axis, keepdims=True)


def erase(x: Array, y: Array, axis: int) -> Array:
    """x with 0 at the class y of each row."""
    if alone(x):
        return jnp.put_along_axis(x, y, jnp.zeros((), x.dtype), axis, inplace=False, mode="promise_in_bounds")
    return jnp.where(hits(x, y, axis), 0, x)


def exponentials(x: Array, pivot: Array, axis: int) -> tuple[Array, Pivot]:
    """e with the pivot's entry 0, and the scalars."""
    x_k = pick(x, pivot, axis)
    top = jnp.max(x, axis, keepdims=True)
    # Adding a whole number back is exact, so that the rounding error of the difference is had in two operations.
    shift = jnp.floor(top) - jnp.where(x_k == top, jnp.asarray(_HEADROOM[x.dtype.name], x.dtype), 0)
    high = x - shift
    low = x - (high + shift)
    e = jnp.exp(high)
    e = erase(select(high != -jnp.inf, e + e * low), pivot, axis)
    return e, _scalars(x_k, shift, jnp.sum(e, axis, keepdims=True))


def scalars(x: Array, pivot: Array, axis: int) -> Pivot:
    """The scalars alone: nothing of the size of x is written where the classes can be split into blocks."""
    block = _block_size(x.shape[axis]) if alone(x) else None
    if block is None:
        return exponentials(x, pivot, axis)[1]
    blocks = x.reshape(*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
    index = jnp.expand_dims(pivot // block, axis)
    own = jnp.take_along_axis(blocks, index, axis, mode="promise_in_bounds")
    within, classes = jnp.expand_dims(pivot % block, axis), axis + 1
    at_pivot = hits(own, within, classes)
    x_k = jnp.sum(jnp.where(at_pivot, own, 0), classes, keepdims=True)

    tops = jnp.max(blocks, classes, keepdims=True)
    is_own = hits(tops, index, axis)
    top = jnp.max(jnp.where(is_own, -jnp.inf, tops), axis, keepdims=True)
    top = jnp.maximum(top, jnp.max(jnp.where(at_pivot, -jnp.inf, own), classes, keepdims=True))
    shift = jnp.where(top == -jnp.inf, x_k, top)

    # The pivot's block may overflow here, which is why it is dropped by a mask and not subtracted.
    sums = jnp.sum(jnp.exp(blocks - shift), classes, keepdims=True)
    rest = jnp.sum(jnp.where(is_own, 0, sums), axis, keepdims=True)
    rest = rest + jnp.sum(jnp.where(at_pivot, 0, jnp.exp(own - shift)), classes, keepdims=True)
    x_k, shift, rest = (jnp.squeeze(value, axis) for value in (x_k, shift, rest))
    return _scalars(x_k, shift, rest)


def _block_size(classes: int) -> int | None:
    """The divisor of the number of classes nearest to 256, if there is one that splits it to any purpose."""
    return min(
        (size for size in range(32, 4097) if classes % size == 0 and classes > size),
        key=lambda size: abs(size - 256),
        default=None,
    )


def _scalars(x_k: Array, shift: Array, rest: Array) -> Pivot:
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
