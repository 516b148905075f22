"""The loss of global arrays over a mesh, of logits and in the fused linear form, in the accumulation dtype."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from unixent_jax.collectives import ShardAxes
from unixent_jax.kernel import is_index
from unixent_jax.linear.problem import LinearArrays
from unixent_jax.linear.reduction import local_loss as local_linear_loss
from unixent_jax.logits.problem import LossArrays, prepare
from unixent_jax.logits.reduction import local_loss as local_logits_loss
from unixent_jax.vocab_parallel.mesh import map_shards
from unixent_jax.vocab_parallel.problem import MeshSpec, Placement


def logits_loss(spec: MeshSpec, arrays: LossArrays) -> Array | tuple[Array, Array]:
    """The result of a call of `unixent.cross_entropy` on global arrays."""
    loss, axes = spec.loss, spec.axes
    arrays = prepare(loss, arrays)
    axis, shape = loss.kernel.class_axis.axis, arrays.logits.shape
    positions = shape[:axis] + shape[axis + 1 :]
    if 0 in positions:
        return local_logits_loss(loss, arrays)
    rows = axes.positions(len(positions))
    full = (*rows[:axis], axes.model, *rows[axis:])

    def body(shard_axes: ShardAxes, shards: dict[str, Any]) -> Any:
        return local_logits_loss(loss.on_shards(shard_axes), LossArrays(**shards))

    target = rows if is_index(arrays.target) else full
    placements = {"logits": full, "target": target, **_common_placements(rows, arrays)}
    return map_shards(axes, arrays._asdict(), placements, positions, body, loss)


def linear_loss(spec: MeshSpec, arrays: LinearArrays) -> Array | tuple[Array, Array]:
    """The result of a call of `unixent.linear_cross_entropy` on global arrays."""
    linear, axes = spec.loss, spec.axes
    loss = linear.loss
    arrays = prepare(loss, arrays)
    positions = arrays.hidden.shape[:-1]
    if 0 in positions:
        return local_linear_loss(linear, arrays)
    rows = axes.positions(len(positions))

    def body(shard_axes: ShardAxes, shards: dict[str, Any]) -> Any:
        return local_linear_loss(linear._replace(loss=loss.on_shards(shard_axes)), LinearArrays(**shards))

    placements = {
        "hidden": (*rows, ()),
        "classifier": (axes.model, ()),
        "bias": (axes.model,),
        "target": rows if is_index(arrays.target) else (*rows, axes.model),
        **_common_placements(rows, arrays),
    }
    return map_shards(axes, arrays._asdict(), placements, positions, body, loss)


def _common_placements(rows: Placement, arrays: LossArrays | LinearArrays) -> dict[str, Placement]:
    normalizer = () if arrays.normalizer is None else ((),) * jnp.ndim(arrays.normalizer)
    return {"mask": rows, "weight": ((),), "normalizer": normalizer}
