"""The statistics of rows without writing anything of the size of the logits: for the value alone."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from unixent_jax.kernel.class_axis import ClassAxis, can_gather, is_class
from unixent_jax.kernel.rows import RowStats, exp_and_stats, opaque, row_stats


def stats_by_blocks(x: Array, pivot: Array, classes: ClassAxis) -> RowStats:
    """The scalars of each row; nothing of the size of x is written where the classes can be split into blocks."""
    axis = classes.axis
    block = _block_size(x.shape[axis]) if can_gather(x, classes) else None
    if block is None:
        return exp_and_stats(x, pivot, classes)[1]
    blocks = x.reshape(*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
    block_index = jnp.expand_dims(pivot // block, axis)
    pivot_block = jnp.take_along_axis(blocks, block_index, axis, mode="promise_in_bounds")
    within, inner = jnp.expand_dims(pivot % block, axis), axis + 1
    is_pivot = is_class(pivot_block, within, ClassAxis(inner))
    pivot_logit = jnp.sum(jnp.where(is_pivot, pivot_block, 0), inner, keepdims=True)

    tops = jnp.max(blocks, inner, keepdims=True)
    is_pivot_block = is_class(tops, block_index, ClassAxis(axis))
    top = jnp.max(jnp.where(is_pivot_block, -jnp.inf, tops), axis, keepdims=True)
    top = jnp.maximum(top, jnp.max(jnp.where(is_pivot, -jnp.inf, pivot_block), inner, keepdims=True))
    shift = opaque(jnp.where(top == -jnp.inf, pivot_logit, top))

    # The pivot's block may overflow here, which is why it is dropped by a mask and not subtracted.
    sums = jnp.sum(jnp.exp(blocks - shift), inner, keepdims=True)
    sum_rest = jnp.sum(jnp.where(is_pivot_block, 0, sums), axis, keepdims=True)
    sum_rest = sum_rest + jnp.sum(jnp.where(is_pivot, 0, jnp.exp(pivot_block - shift)), inner, keepdims=True)
    return row_stats(*(jnp.squeeze(value, axis) for value in (shift, pivot_logit, sum_rest)))


def _block_size(num_classes: int) -> int | None:
    """The divisor of the number of classes nearest to 256, if there is one that splits it to any purpose."""
    return min(
        (size for size in range(32, 4097) if num_classes % size == 0 and num_classes > size),
        key=lambda size: abs(size - 256),
        default=None,
    )
