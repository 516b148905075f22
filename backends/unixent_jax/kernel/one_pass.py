"""The statistics of a row in one reading of it, for GPUs.

XLA on a GPU makes one kernel, without temporaries, of a variadic reduction and of all that is formed element by element
for it: one reading of the logits, and a second one for the gradient. On the CPU such a reduction is slow.

The reduction carries the maximum m of the classes that are not the pivot, and the sum of the exponentials of those
below it relative to `nearest_step` (m), the multiple of 8 nearest to m. So the difference of a number and its own step
is exact, and a sum is carried to a larger maximum by a factor exp(-8 k) of an exact argument: rows that rise slowly do
not add up roundings of a running maximum.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from unixent_jax.kernel.class_axis import ClassAxis, take
from unixent_jax.kernel.rows import HEADROOM, RowStats, row_stats

_STEP = 8.0


def is_class(x: Array, index: Array, classes: ClassAxis) -> Array:
    """Mask of the class ``index`` of each row, formed where it is read."""
    return lax.broadcasted_iota(jnp.int32, x.shape, classes.axis) == index


def shift_and_stats(x: Array, pivot: Array, classes: ClassAxis) -> tuple[Array, RowStats]:
    """The shift in e_c = exp(x_c - shift), and the scalars of each row."""
    pivot_logit = take(x, pivot, classes)
    top, sum_below = _top_and_sum_below(jnp.where(is_class(x, pivot, classes), -jnp.inf, x), classes.axis)
    exp_top = jnp.exp(top - nearest_step(top))
    # Above the maximum of the others where the pivot leads by so much that exp_scale would not be a normal number.
    shift = jnp.maximum(top, nearest_step(pivot_logit) - HEADROOM[x.dtype.name])
    stats = row_stats(shift, pivot_logit, (sum_below + exp_top) * jnp.exp(nearest_step(top) - shift))
    # Relative to the maximum, for a logsumexp near 0.
    sum_below = sum_below + jnp.exp(pivot_logit - nearest_step(top))
    logsumexp = jnp.where(pivot_logit <= top, top + jnp.log1p(sum_below / exp_top), stats.logsumexp)
    return shift, stats._replace(logsumexp=logsumexp)


def shifted_exp(x: Array, shift: Array) -> Array:
    """exp(x - shift).

    Where x is a product, compilers join it with the difference to one operation, which does not round the product: the
    largest x would lie above itself as the shift. The minimum keeps them apart.
    """
    return jnp.exp(jnp.minimum(x, jnp.finfo(x.dtype).max) - shift)


def _top_and_sum_below(x: Array, axis: int) -> tuple[Array, Array]:
    """The maximum of each row, and the sum of exp(x - `nearest_step` (maximum)) over all but one that is the maximum.

    NaN makes one of them NaN.
    """
    top, sum_below = reduce_parts((x, jnp.zeros_like(x)), axis)
    return jnp.expand_dims(top, axis), jnp.expand_dims(sum_below, axis)


def reduce_parts(parts: tuple[Array, Array], axis: int) -> tuple[Array, Array]:
    """The same of parts of rows along an axis."""
    dtype = parts[0].dtype
    return lax.reduce(parts, (jnp.asarray(-jnp.inf, dtype), jnp.zeros((), dtype)), combine, (axis,))


def combine(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two parts of a row as one.

    The lower maximum becomes a term of the sum, which starts at 0: so the logits are one operand of the reduction, not
    two, and XLA does not write them out where they are costly to form.
    """
    (top_a, sum_a), (top_b, sum_b) = a, b
    is_a = top_a >= top_b
    top, lower = jnp.where(is_a, top_a, top_b), jnp.where(is_a, top_b, top_a)
    sum_top, sum_lower = jnp.where(is_a, sum_a, sum_b), jnp.where(is_a, sum_b, sum_a)
    sum_lower = sum_lower + jnp.exp(lower - nearest_step(lower))
    return top, sum_top + sum_lower * jnp.exp(nearest_step(lower) - nearest_step(top))


def nearest_step(x: Array) -> Array:
    """The multiple of 8 nearest to x, and a finite number for -inf, of which every difference is a number."""
    return _STEP * jnp.round(jnp.maximum(x, jnp.finfo(x.dtype).min) / _STEP)
