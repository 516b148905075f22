"""From the rows of a fused linear call to its result, in the accumulation dtype."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from unixent_jax.linear.autograd import losses, sums_of_losses
from unixent_jax.linear.problem import LinearArrays, LinearSpec, positions_by_row, rows_of
from unixent_jax.logits.problem import LossSpec, Positions, prepare
from unixent_jax.logits.reduction import denominators, reduce


def loss(spec: LinearSpec, arrays: LinearArrays) -> Array | tuple[Array, Array]:
    """The result of a call of `unixent.linear_cross_entropy`."""
    return local_loss(spec, prepare(spec.loss, arrays))


def local_loss(spec: LinearSpec, arrays: LinearArrays) -> Array | tuple[Array, Array]:
    """The same from prepared arrays, which may be a device's shard."""
    positions = positions_by_row(spec.loss, arrays)
    rows = rows_of(spec.loss, arrays, positions)
    if spec.loss.reduction == "none":
        return losses(spec, rows).reshape(arrays.hidden.shape[:-1])
    parts = _denominators(spec.loss, positions, arrays.weight)
    unweighted = arrays.mask is None and arrays.weight is None
    return reduce(spec.loss, sums_of_losses(spec, rows), parts, arrays.normalizer, unweighted)


@partial(jax.jit, static_argnames="spec")
def is_empty(spec: LinearSpec, arrays: LinearArrays) -> Array:
    """Whether the denominator of the mean is 0."""
    if arrays.normalizer is not None:
        return jnp.any(jnp.asarray(arrays.normalizer) == 0)
    arrays = prepare(spec.loss._replace(validate="off"), arrays)
    return jnp.sum(_denominators(spec.loss, positions_by_row(spec.loss, arrays), arrays.weight)) == 0


def _denominators(spec: LossSpec, positions: Positions, weight: Array | None) -> Array:
    w = None if weight is None or positions.out_of_range is None else weight[positions.target]
    return denominators(spec, positions, w, positions.target.shape[:1])
