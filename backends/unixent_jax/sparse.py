"""The loss of sparse targets, from statistics of positions; and `unixent.TopK` as a pytree of its arrays.

Where classes are split over devices, every device holds the same ids, of the whole vocabulary, and the same
probabilities: the statistics are then reduced over the devices, and the rest is each device's own.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from unixent import sparse_targets
from unixent.protocol import Teacher
from unixent.topk import TopK
from unixent_jax.collectives import ShardAxes
from unixent_jax.linear.problem import LinearArrays, LinearSpec
from unixent_jax.logits.problem import LossArrays, LossSpec, prepare
from unixent_jax.logits.reduction import reduce, sums_of
from unixent_jax.positions.rows import GATHERS
from unixent_jax.positions.solve import StatsSpec, local_stats, safe_selection


class SparseSpec(NamedTuple):
    """What is static about a call."""

    scores: LossSpec | LinearSpec
    teacher: Teacher

    @property
    def loss(self) -> LossSpec:
        return self.scores.loss

    def on_shards(self, axes: ShardAxes) -> SparseSpec:
        """The spec of a device's shard, inside `jax.shard_map`."""
        return self._replace(scores=self.scores.on_shards(axes))


def sparse_loss(spec: SparseSpec, arrays: LossArrays | LinearArrays) -> Array | tuple[Array, Array]:
    """The result of a call, of arrays with ids."""
    return local_sparse_loss(spec, prepare(spec.loss, arrays))


def local_sparse_loss(spec: SparseSpec, arrays: LossArrays | LinearArrays) -> Array | tuple[Array, Array]:
    """The same from prepared arrays, which may be a device's shard."""
    losses, of, mask = _position_losses(spec, arrays), spec.loss, arrays.mask
    if of.reduction == "none":
        return losses
    denominators = jnp.ones_like(losses) if mask is None else mask
    return reduce(of, sums_of(losses), denominators, arrays.normalizer, mask is None)


def _position_losses(spec: SparseSpec, arrays: LossArrays | LinearArrays) -> Array:
    """The loss of each position, in the accumulation dtype."""
    kernel, teacher, dtype = spec.loss.kernel, spec.teacher, jnp.dtype(spec.loss.kernel.acc_dtype)
    ids, mask, weight = arrays.ids, arrays.mask, arrays.weight
    assert ids is not None
    index, known = safe_selection(spec.loss, ids, dtype)
    one = jnp.ones(ids.shape[:-1], dtype)
    v = jnp.where(jnp.isnan(known).any(-1), math.nan, one if mask is None else mask)
    padding = (known == 0) | (v == 0)[..., None]
    one_minus_smoothing = 1 - kernel.label_smoothing
    factor = one_minus_smoothing * jnp.where(padding, 0, jnp.ones_like(known) if weight is None else weight[index])
    shares = sparse_targets.shares_of(GATHERS, teacher, arrays.target.astype(dtype), padding)
    outputs = sparse_targets.outputs_of(teacher, bool(kernel.label_smoothing or kernel.z_loss))
    columns = local_stats(StatsSpec(spec.scores, outputs, 0), arrays._replace(mask=v))
    stats = {name: each if name == "selected_log_prob" else each[..., None] for name, each in columns.items()}
    losses = sparse_targets.losses(GATHERS, shares, factor, one_minus_smoothing, stats)[..., 0]
    return jnp.where(v == 0, 0, v * losses)


def _unflatten(teacher: Teacher, values: Any) -> TopK:
    topk = object.__new__(TopK)  # what passes through a pytree need not be arrays
    probs, log_probs = (None, values[1]) if teacher.is_log else (values[1], None)
    for name, value in (("ids", values[0]), ("probs", probs), ("log_probs", log_probs), ("tail", teacher.tail)):
        object.__setattr__(topk, name, value)
    return topk


jax.tree_util.register_pytree_node(TopK, lambda topk: ((topk.ids, topk.values), topk.teacher), _unflatten)
