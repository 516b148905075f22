"""The statistics of a row of logits, relative to its pivot (see `unixent.pivot`).

The pivot is the target, or the argmax where the target is mixed. Its own exponential is left out of the sum and kept as
a scalar, so that a confident row keeps its relative accuracy.

XLA on CPU runs a plain reduction as one fused kernel but materialises whatever is selected by a mask, so the pivot is
left out in one of two ways: where the exponentials are needed anyway (for the gradient) they are masked as they are
formed and the rounding error of x_c - shift is made good, as here; where only the sum is needed, blocks of classes are
summed unmasked and the pivot's block is redone (`unixent_jax.kernel.blocks`). docs/jax.md has the measurements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from unixent_jax.kernel.class_axis import (
    ClassAxis,
    max_over_classes,
    sum_over_classes,
    take,
    where_or_zero,
    zero_at,
)

# A row whose pivot holds the maximum by far would push every other exponential into the subnormals, which XLA flushes
# to zero; its shift is lowered by this much, which still cannot overflow a sum.
HEADROOM = {"float32": 60.0, "float64": 600.0}


class RowSpec(NamedTuple):
    """What is static about rows."""

    classes: ClassAxis
    z_loss: float


class RowStats(NamedTuple):
    """The scalars of each row, with the class axis kept as 1."""

    loss: Array  # L_k = lse - x_k
    logsumexp: Array
    exp_scale: Array  # p_c = exp_scale * e_c for c != k
    p: Array  # p_k
    one_minus_p: Array


def shift_below(top: Array) -> Array:
    """The shift of a row whose pivot holds its maximum."""
    return opaque(jnp.floor(top) - jnp.asarray(HEADROOM[top.dtype.name], top.dtype))


def opaque(x: Array) -> Array:
    """x, never a constant to XLA, nor the same as another expression.

    Of a constant shift it would reorder the sums that find the rounding error of a difference.
    """
    return x + lax.optimization_barrier(jnp.zeros((), x.dtype))


def shifted_exp(x: Array, shift: Array) -> Array:
    """exp(x - shift), for a shift that is a whole number: adding that back is exact, so that the rounding error of the
    difference is had in two operations."""
    high = x - shift
    low = x - (high + shift)
    e = jnp.exp(high)
    return where_or_zero(high != -jnp.inf, e + e * low)


def exp_and_stats(x: Array, pivot: Array, classes: ClassAxis) -> tuple[Array, RowStats]:
    """e with the pivot's entry 0, and the scalars."""
    pivot_logit = take(x, pivot, classes)
    top = max_over_classes(x, classes)
    shift = shift_below(top)
    e = zero_at(shifted_exp(x, shift), pivot, classes)
    sum_rest = sum_over_classes(e, classes)
    stats = row_stats(shift, pivot_logit, sum_rest)
    # A shift so far below, or a pivot, would cost lse a rounding of its own size: relative to the maximum it has none.
    exp_top = shifted_exp(top, shift)
    sum_below = (sum_rest - exp_top) + shifted_exp(pivot_logit, shift)
    logsumexp = jnp.where(pivot_logit < top, top + jnp.log1p(sum_below / exp_top), stats.logsumexp)
    return e, stats._replace(logsumexp=logsumexp)


def row_stats(shift: Array, pivot_logit: Array, sum_rest: Array) -> RowStats:
    """The scalars from the shift, the pivot's logit and the sum of the other exponentials.

    `unixent.pivot.row_stats` says the same for all frameworks. Its care of pivots that lead by more than 60, which
    the shift rules out here, has XLA hold two more numbers a row, and value and gradient need more memory than optax.
    """
    pivot_logit = jnp.where(pivot_logit == jnp.inf, jnp.nan, pivot_logit)
    high = shift - pivot_logit
    back = high - shift
    low = (shift - (high - back)) - (pivot_logit + back)
    low = jnp.where(jnp.isfinite(high), low, 0)
    near = jnp.exp(-jnp.abs(high))
    far = high > 0

    near = near * jnp.where(far, 1 - low, 1 + low)
    t = sum_rest * near
    total = jnp.where(far, sum_rest + near, 1 + t)
    log_norm = jnp.where(far, low + jnp.log(sum_rest + near), jnp.log1p(t))
    return RowStats(
        loss=jnp.where(far, high, 0) + log_norm,
        logsumexp=jnp.where(far, shift, pivot_logit) + log_norm,
        exp_scale=jnp.where(far, 1, near) / total,
        p=jnp.where(far, near, 1) / total,
        one_minus_p=jnp.where(far, sum_rest, t) / total,
    )


def softmax_and_logsumexp(x: Array, active: Array, classes: ClassAxis) -> tuple[Array, Array]:
    """p and lse for derivatives of higher order; inactive rows hold numbers, so that zeros pass through them.

    A row with +inf is NaN. Its selection also lies between a product that x may be and the difference with the maximum,
    which compilers would join to one operation that does not round the product: the largest would lie above itself.
    """
    x = jnp.where(active, x, 0)
    x = jnp.where(x == jnp.inf, jnp.nan, x)
    if not classes.is_sharded:
        return jax.nn.softmax(x, classes.axis), jax.nn.logsumexp(x, classes.axis, keepdims=True)
    top = max_over_classes(x, classes)
    e = jnp.exp(x - top)
    sum_exp = sum_over_classes(e, classes)
    return e / sum_exp, top + jnp.log(sum_exp)


def add_z_loss(loss: Array, stats: RowStats, spec: RowSpec) -> Array:
    return loss + spec.z_loss * stats.logsumexp**2 if spec.z_loss else loss


def product(coef: Array, value: Array) -> Array:
    """coef * value with 0 * inf = 0: what has no weight adds nothing. NaN stays."""
    return where_or_zero((coef != 0) | (value != jnp.inf), coef * value)


def inner(a: Array, tangent: Array, classes: ClassAxis) -> Array:
    """<a, tangent>. The tangent comes first: where vmap maps over tangents alone, jaxlib 0.10.2's CPU compiler gives
    wrong numbers for ``tangent - sum(a * tangent)`` of 65,536 numbers and more, and right ones for the other order."""
    return sum_over_classes(tangent * a, classes)


@jax.custom_jvp
def _finite_part(x: Array) -> Array:
    return where_or_zero(~jnp.isinf(x), x)


# An infinite L_c has a derivative by the logits as any other has.
_finite_part.defjvp(lambda primals, tangents: (_finite_part(*primals), tangents[0]))


def inner_with_tangent(a: Array, tangent: Array, classes: ClassAxis) -> Array:
    """<a, tangent> with 0 * inf = 0, for a that may hold inf."""
    return sum_over_classes(times_tangent(a, tangent), classes)


def times_tangent(a: Array, tangent: Array) -> Array:
    """Their product, with 0 * inf = 0; linear in the tangent, as what JAX transposes must be."""
    largest = jnp.finfo(a.dtype).max
    infinite_part = where_or_zero(a == jnp.inf, tangent * largest) * largest
    return tangent * _finite_part(a) + infinite_part


def is_known(tangent: Any) -> bool:
    """Whether a tangent of a rule with symbolic zeros is not known to be 0."""
    return tangent is not None and not isinstance(tangent, SymbolicZero)


def hvp(spec: RowSpec, x: Array, total_coef: Array, active: Array, tangent: Array) -> Array:
    """The part of dg that stems from dx: the product of a row's Hessian with ``tangent``."""
    p, logsumexp = softmax_and_logsumexp(x, active, spec.classes)
    mean = inner(p, tangent, spec.classes)
    dp = p * (tangent - mean)
    if not spec.z_loss:
        return total_coef * dp
    return (total_coef + 2 * spec.z_loss * logsumexp) * dp + 2 * spec.z_loss * mean * p
