"""From the losses of positions to the result, in the accumulation dtype."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unixent import semantics
from unixent_jax.collectives import sum_scalars
from unixent_jax.kernel import is_index
from unixent_jax.kernel.class_axis import target_weight
from unixent_jax.kernel.composed import mask_padding
from unixent_jax.logits.autograd import row_losses
from unixent_jax.logits.problem import LossArrays, LossSpec, Positions, positions_of, prepare


def loss(spec: LossSpec, arrays: LossArrays) -> Array | tuple[Array, Array]:
    """The result of a call of `unixent.cross_entropy`."""
    return local_loss(spec, prepare(spec, arrays))


def local_loss(spec: LossSpec, arrays: LossArrays) -> Array | tuple[Array, Array]:
    """The same from prepared arrays, which may be a device's shard."""
    # Here as well as in the pass, whose gradient 0 at the padding would meet the NaN of an index out of range.
    x = mask_padding(spec.kernel, arrays.logits.astype(spec.kernel.acc_dtype), -jnp.inf)
    target = arrays.target if is_index(arrays.target) else mask_padding(spec.kernel, arrays.target, 0)
    positions = positions_of(spec, target, arrays.mask)
    kernel = spec.kernel._replace(is_widened=arrays.logits.dtype != x.dtype)
    losses = row_losses(kernel, x, positions.target, arrays.weight, positions.weight)
    if spec.reduction == "none":
        return losses
    parts = _denominators(spec, x, positions, arrays.weight)
    return reduce(spec, sums_of(losses), parts, arrays.normalizer, arrays.mask is None and arrays.weight is None)


@partial(jax.jit, static_argnames="spec")
def is_empty(spec: LossSpec, arrays: LossArrays) -> Array:
    """Whether the denominator of the mean is 0."""
    if arrays.normalizer is not None:
        return jnp.any(jnp.asarray(arrays.normalizer) == 0)
    arrays = prepare(spec._replace(validate="off"), arrays)
    positions = positions_of(spec, arrays.target, arrays.mask)
    return jnp.sum(_denominators(spec, arrays.logits, positions, arrays.weight)) == 0


def _denominators(spec: LossSpec, x: Array, positions: Positions, weight: Array | None) -> Array:
    shape = x.shape[: spec.kernel.class_axis.axis] + x.shape[spec.kernel.class_axis.axis + 1 :]
    w = None
    if weight is not None and positions.out_of_range is not None:
        w = target_weight(weight, positions.target, x, spec.kernel.class_axis)
    return denominators(spec, positions, w, shape)


def denominators(spec: LossSpec, positions: Positions, target_weights: Array | None, shape: tuple[int, ...]) -> Array:
    """d of each position, of ``shape``."""
    parts = semantics.denominators(jnp, positions.denominator_weight, target_weights, positions.out_of_range)
    return jnp.ones(shape, spec.kernel.acc_dtype) if parts is None else parts


def sums_of(losses: Array) -> tuple[Array, Array]:
    """The sum of the losses, and that of the losses scaled down, which does not overflow."""
    return jnp.sum(losses), jnp.sum(losses * semantics.LARGE_MEAN_SCALE)


def reduce(
    spec: LossSpec, sums: tuple[Array, Array], denominators: Array, normalizer: Array | None, unweighted: bool
) -> Array | tuple[Array, Array]:
    """The reduction to a scalar, from `sums_of` the losses; both terms of the mean where the spec asks for them.

    With ``unweighted``, positions have neither a mask nor class weights.
    """
    axes, (numerator, scaled) = spec.token_axes, sums
    if spec.return_terms:
        return sum_scalars(axes, numerator, jnp.sum(denominators))
    if spec.reduction == "sum":
        return sum_scalars(axes, numerator)[0]
    if normalizer is None:
        numerator, scaled, denominator = sum_scalars(axes, numerator, scaled, jnp.sum(denominators))
    else:
        (numerator, scaled), denominator = sum_scalars(axes, numerator, scaled), normalizer
    # Nothing to divide by where every position is ignored: the numerator is 0 then, and a look at NaN costs XLA a row.
    skip_nan = unweighted and normalizer is None
    return _mean(0.0 if spec.on_empty == "zero" else math.nan, skip_nan, numerator, scaled, denominator)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _mean(empty: float, skip_nan: bool, numerator: Array, scaled: Array, denominator: Array) -> Array:
    """The quotient of the sums; where the first overflows, of the second. One division: two would cost XLA memory."""
    overflows = jnp.isinf(numerator)
    mean = _quotient(empty, skip_nan, jnp.where(overflows, scaled, numerator), denominator)
    return mean / jnp.where(overflows, semantics.LARGE_MEAN_SCALE, 1)


@_mean.defjvp
def _mean_jvp(empty: float, skip_nan: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    numerator, _, denominator = primals
    of_numerator = partial(_quotient, empty, skip_nan, denominator=denominator)
    return _mean(empty, skip_nan, *primals), jax.jvp(of_numerator, (numerator,), tangents[:1])[1]


def _quotient(empty: float, skip_nan: bool, numerator: Array, denominator: Array) -> Array:
    if math.isnan(empty) or not skip_nan:
        return semantics.mean_of(jnp, numerator, denominator, empty)
    is_empty = denominator == 0
    return jnp.where(is_empty, 0, numerator / jnp.where(is_empty, 1, denominator))
