"""The statistics of a row in one reading of it, for GPUs.

XLA on a GPU makes one kernel, without temporaries, of a variadic reduction and of all that is formed element by element
for it: one reading of the logits, and a second one for the gradient. On the CPU such a reduction is slow.

The reduction carries the maximum m of the classes that are not the pivot, and the sum of the exponentials of those
below it relative to `nearest_step` (m), the multiple of 8 nearest to m. So the difference of a number and its own step
is exact, and a sum is carried to a larger maximum by a factor exp(-8 k) of an exact argument: rows that rise slowly do
not add up roundings of a running maximum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from unixent_jax.kernel.class_axis import ClassAxis, take
from unixent_jax.kernel.rows import HEADROOM, RowStats, opaque, row_stats

_STEP = 8.0

# Of sums of exponentials that may be small beside that of the maximum.
SCALE = {"float32": 2.0**80, "float64": 2.0**800}


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
    top, sum_below = reduce_parts(combine, (-jnp.inf, 0), (x, jnp.zeros_like(x)), axis)
    return jnp.expand_dims(top, axis), jnp.expand_dims(sum_below, axis)


def reduce_parts(
    combine: Callable[..., Any], start: tuple[float, ...], parts: tuple[Array, ...], axis: int
) -> tuple[Array, ...]:
    """Parts of rows joined along an axis, where ``start`` adds nothing to any."""
    init = tuple([jnp.asarray(value, part.dtype) for value, part in zip(start, parts, strict=True)])
    return tuple(lax.reduce(parts, init, combine, (axis,)))


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


class MixedRow(NamedTuple):
    """The scalars of a row whose classes have coefficients t_c, with the class axis kept as 1."""

    top: Array  # the maximum m
    pivot: Array  # a class that holds it
    shift: Array  # a whole number below m
    sum_rest: Array  # of exp(x_c - shift) over all classes but the pivot, as the next sums
    pivot_coef: Array
    other_coefs: Array
    sum_gaps: Array  # of t_c (m - x_c)


def suits_mixed_rows(x: Array, axis: int) -> bool:
    """Whether XLA joins a reduction of more than two numbers along an axis with what is formed for it.

    Of columns it does not, for want of shared memory, unless they are so short that no threads share them.
    """
    return math.prod(x.shape[axis + 1 :]) == 1 or x.shape[axis] < 32


def mixed_row(x: Array, coefs: Array, axis: int) -> MixedRow:
    """In one reading of both. NaN makes a sum NaN."""
    zero, classes = jnp.zeros_like(x), lax.broadcasted_iota(jnp.int32, x.shape, axis)
    parts = (x, classes, zero, jnp.broadcast_to(coefs, x.shape), zero, zero)
    row = reduce_parts(combine_mixed, (-jnp.inf, 0, 0, 0, 0, 0), parts, axis)
    top, pivot, sum_rest, *sums = (jnp.expand_dims(value, axis) for value in row)
    headroom = HEADROOM[x.dtype.name]
    shift = opaque(nearest_step(top) - headroom)
    return MixedRow(top, pivot, shift, sum_rest * (math.exp(headroom) / SCALE[x.dtype.name]), *sums)


def combine_mixed(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    """As `combine`, of the maximum, its class, its coefficient, and the sums of a `MixedRow` over the other classes.

    The gaps are relative to the maximum itself, and sums of positive terms. The exponentials, without the pivot's own,
    are scaled up, and brought to a larger maximum by the root of a factor, twice: of many that are no normal numbers,
    the sum may be one.
    """
    is_a = a[0] >= b[0]
    top, pivot, sum_rest, coef, other_coefs, gaps = (jnp.where(is_a, *each) for each in zip(a, b, strict=True))
    low_top, _, low_sum, low_coef, low_others, low_gaps = (jnp.where(is_a, *each) for each in zip(b, a, strict=True))
    low_sum = low_sum + jnp.exp(low_top - nearest_step(low_top)) * SCALE[top.dtype.name]
    root = jnp.exp((nearest_step(low_top) - nearest_step(top)) / 2)
    gap, low_coefs = jnp.where(low_top == top, 0, top - low_top), low_coef + low_others
    low_gaps = low_gaps + jnp.where((low_coefs != 0) | (gap != jnp.inf), low_coefs * gap, 0)
    return top, pivot, sum_rest + low_sum * root * root, coef, other_coefs + low_coefs, gaps + low_gaps


def exactly_shifted_exp(x: Array, shift: Array) -> Array:
    """exp(x - shift) for a whole number, as `rows.shifted_exp` has it."""
    x = jnp.minimum(x, jnp.finfo(x.dtype).max)
    high = x - shift
    low = x - (high + shift)
    e = jnp.exp(high)
    return jnp.where(high != -jnp.inf, e + e * low, 0)


def nearest_step(x: Array) -> Array:
    """The multiple of 8 nearest to x, and a finite number for -inf, of which every difference is a number."""
    return _STEP * jnp.round(jnp.maximum(x, jnp.finfo(x.dtype).min) / _STEP)
