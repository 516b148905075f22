"""From the losses of positions to the result, in the accumulation dtype."""

from __future__ import annotations

import math
from functools import partial

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
    losses = row_losses(spec.kernel, x, positions.target, arrays.weight, positions.weight)
    if spec.reduction == "none":
        return losses
    parts = _denominators(spec, x, positions, arrays.weight)
    return reduce(spec, jnp.sum(losses), parts, arrays.normalizer, arrays.mask is None and arrays.weight is None)


@partial(jax.jit, static_argnames="spec")
def is_empty(spec: LossSpec, arrays: LossArrays) -> Array:
    """Whether the denominator of the mean is 0."""
    if arrays.normalizer is not None:
        return jnp.all(jnp.asarray(arrays.normalizer) == 0)
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


def reduce(
    spec: LossSpec, numerator: Array, denominators: Array, normalizer: Array | None, unweighted: bool
) -> Array | tuple[Array, Array]:
    """The reduction to a scalar, from the sum of the losses; both sums where the spec asks for terms.

    With ``unweighted``, positions have neither a mask nor class weights.
    """
    axes = spec.token_axes
    if spec.return_terms:
        return sum_scalars(axes, numerator, jnp.sum(denominators))
    if spec.reduction == "sum":
        return sum_scalars(axes, numerator)[0]
    if normalizer is None:
        numerator, denominator = sum_scalars(axes, numerator, jnp.sum(denominators))
    else:
        (numerator,), denominator = sum_scalars(axes, numerator), normalizer
        if normalizer.ndim:
            numerator, denominator = numerator * normalizer[1], normalizer[0]
    if unweighted and normalizer is None and spec.on_empty == "zero":
        # Empty where every position is ignored: the numerator is 0 then, and a look at NaN would cost XLA a row.
        is_empty = denominator == 0
        return jnp.where(is_empty, 0, numerator / jnp.where(is_empty, 1, denominator))
    return semantics.mean_of(jnp, numerator, denominator, 0.0 if spec.on_empty == "zero" else math.nan)
