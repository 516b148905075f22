"""Statistics of all positions: one jitted program, of logits or of hidden states a chunk of logits at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from unixent.logit_transform import LogitTransform
from unixent.protocol import PositionStats
from unixent.row_statistics import INDICES, WIDE, Classes, settled
from unixent_jax.collectives import ShardAxes
from unixent_jax.kernel import is_index
from unixent_jax.kernel.composed import mask_padding
from unixent_jax.kernel.transform import apply_transform
from unixent_jax.linear.chunks import Chunk, chunk_logits, join_rows, split_rows
from unixent_jax.linear.problem import LinearArrays, LinearSpec, positions_by_row, rows_of
from unixent_jax.logits.autograd import row_losses
from unixent_jax.logits.problem import LossArrays, LossSpec, positions_of, prepare
from unixent_jax.positions.rows import RowRequest, row_outputs


class StatsSpec(NamedTuple):
    """What is static about a call."""

    scores: LossSpec | LinearSpec
    outputs: tuple[str, ...]
    k: int

    @property
    def loss(self) -> LossSpec:
        return self.scores.loss

    def on_shards(self, axes: ShardAxes) -> StatsSpec:
        """The spec of a device's shard, inside `jax.shard_map`."""
        return self._replace(scores=self.scores.on_shards(axes))


def solve_stats(
    stats: Callable[..., dict[str, Array]],
    spec: Any,
    result_dtype: str,
    arrays: LossArrays | LinearArrays,
    grad_output: PositionStats,
    wrt: tuple[str, ...],
) -> tuple[PositionStats, tuple[Array, ...]]:
    """The statistics as ``stats`` of (spec, arrays) has them, and the gradients for ``wrt``."""
    if not wrt:
        return PositionStats(**_values(stats, spec, result_dtype, arrays)), ()
    upstream = {name: array for name, array in grad_output._asdict().items() if array is not None}
    values, grads = _values_and_grads(stats, spec, result_dtype, wrt, arrays, upstream)
    return PositionStats(**values), grads


@partial(jax.jit, static_argnums=(0, 1, 2))
def _values(stats: Callable[..., dict[str, Array]], spec: Any, dtype: str, arrays: Any) -> dict[str, Array]:
    return _rounded(stats(spec, arrays), dtype)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _values_and_grads(
    stats: Callable[..., dict[str, Array]],
    spec: Any,
    dtype: str,
    wrt: tuple[str, ...],
    arrays: Any,
    upstream: dict[str, Array],
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    def of(*moving: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        values = stats(spec, arrays._replace(**dict(zip(wrt, moving, strict=True))))
        return {name: values[name] for name in upstream}, values

    graded, vjp, values = jax.vjp(of, *(getattr(arrays, name) for name in wrt), has_aux=True)
    # Of the dtype of the outputs, and differing over the same axes of a mesh.
    seeds = {name: upstream[name].astype(each.dtype) + jnp.zeros_like(each) for name, each in graded.items()}
    return _rounded(values, dtype), vjp(seeds)


def _rounded(values: dict[str, Array], dtype: str) -> dict[str, Array]:
    floating = {name for name, each in values.items() if jnp.issubdtype(each.dtype, jnp.floating)}
    return {name: each.astype(getattr(jnp, dtype)) if name in floating else each for name, each in values.items()}


def stats(spec: StatsSpec, arrays: LossArrays | LinearArrays) -> dict[str, Array]:
    """The outputs of a call, in the accumulation dtype."""
    return local_stats(spec, prepare(spec.loss, arrays))


def local_stats(spec: StatsSpec, arrays: Any) -> dict[str, Array]:
    """The same from prepared arrays, which may be a device's shard."""
    if isinstance(spec.scores, LinearSpec):
        return _of_hidden(spec, spec.scores, arrays)
    kernel = spec.loss.kernel
    axis = kernel.class_axis.axis
    # Here as well as in the pass of the loss, as in `unixent_jax.logits.reduction`.
    x = mask_padding(kernel, arrays.logits.astype(kernel.acc_dtype), -jnp.inf)
    target = arrays.target
    if "loss" in spec.outputs and not is_index(target):
        target = jnp.moveaxis(mask_padding(kernel, target, 0), axis, -1)
    positions = positions_of(spec.loss, target, arrays.mask)
    return _of_rows(spec, jnp.moveaxis(x, axis, -1), positions.target, arrays.weight, positions.weight, arrays.ids)


def _of_hidden(spec: StatsSpec, scores: LinearSpec, arrays: LinearArrays) -> dict[str, Array]:
    rows = rows_of(spec.loss, arrays, positions_by_row(spec.loss, arrays))

    def solve(chunk: Chunk) -> dict[str, Array]:
        x = mask_padding(spec.loss.kernel, chunk_logits(rows, chunk), -jnp.inf)
        return _of_rows(spec, x, chunk.target, rows.weight, chunk.position_weight, chunk.ids)

    stats = lax.map(rows.recomputed(solve), split_rows(scores, rows))
    shape = arrays.hidden.shape[:-1]
    return {name: join_rows(each, rows).reshape(*shape, *each.shape[2:]) for name, each in stats.items()}


def _of_rows(
    spec: StatsSpec,
    x: Array,
    target: Array,
    weight: Array | None,
    position_weight: Array | None,
    ids: Array | None,
) -> dict[str, Array]:
    """The outputs of rows P + (C,) of logits before their transform."""
    kernel = spec.loss.kernel
    kernel = kernel._replace(class_axis=kernel.class_axis._replace(axis=x.ndim - 1))
    outputs = tuple(name for name in spec.outputs if name != "loss")
    stats: dict[str, Array] = {}
    if "loss" in spec.outputs:
        stats["loss"] = row_losses(kernel, x, target, weight, position_weight)
    if not outputs:
        return stats
    v = jnp.ones(x.shape[:-1], x.dtype) if position_weight is None else position_weight
    active, is_unknown = (v != 0)[..., None], jnp.isnan(v)[..., None]
    # What an inactive row holds would reach its gradient as NaN.
    x = apply_transform(kernel.transform, jnp.where(active, x, 0))
    if kernel.transform != LogitTransform():
        x = lax.optimization_barrier(x)  # the same bits wherever it enters
    smoothing = weights = None
    if "regularizer" in outputs and kernel.label_smoothing:
        ones = jnp.ones(kernel.num_classes, x.dtype) if weight is None else weight
        smoothing = ones * (kernel.label_smoothing / kernel.num_classes)
    if ids is not None:
        ids, weights = safe_selection(spec.loss, ids, x.dtype)
    index = target[..., None] if is_index(target) else None
    chosen = Classes(index, ids, weights, smoothing=smoothing, z_loss=kernel.z_loss)
    values, undefined = row_outputs(RowRequest(outputs, spec.k, kernel.num_classes, kernel.class_axis), x, chosen)
    for name, each in values.items():
        each = settled(jnp, name, each, undefined | is_unknown, ~active, weights)
        if name in INDICES:
            each = each.astype(jax.dtypes.canonicalize_dtype("int64"))
        stats[name] = each if name in WIDE else jnp.squeeze(each, -1)
    return stats


def safe_selection(spec: LossSpec, ids: Array, dtype: Any) -> tuple[Array, Array]:
    """Class indices in [0, C), and for each 1, 0 where it is ``ignore_index``, or NaN where it is no class."""
    ignored, limits = spec.ignore_index, jnp.iinfo(ids.dtype)
    padding = ids == jnp.asarray(ignored, ids.dtype) if limits.min <= ignored <= limits.max else False
    outside = ids < 0
    if spec.kernel.num_classes <= limits.max:  # which its dtype may not hold
        outside = outside | (ids >= spec.kernel.num_classes)
    weight = jnp.where(padding, 0, jnp.where(outside, math.nan, 1)).astype(dtype)
    return jnp.where(outside, 0, ids).astype(jnp.int32), weight
