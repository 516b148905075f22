"""A call on global arrays over a mesh, of logits and in the fused linear form, in the accumulation dtype."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from unixent_jax.collectives import ShardAxes
from unixent_jax.kernel import is_index
from unixent_jax.linear.problem import LinearArrays
from unixent_jax.logits.problem import LossArrays, prepare
from unixent_jax.sparse import SparseSpec
from unixent_jax.vocab_parallel.mesh import map_shards
from unixent_jax.vocab_parallel.problem import MeshSpec, Placement


def over_mesh(spec: MeshSpec, arrays: LossArrays | LinearArrays) -> Any:
    """What ``spec.local`` makes of arrays, which it is given a device's shard of."""
    call, axes = spec.call, spec.axes
    loss = call.loss
    arrays = prepare(loss, arrays)
    if isinstance(arrays, LossArrays):
        axis, shape = loss.kernel.class_axis.axis, arrays.logits.shape
        positions = shape[:axis] + shape[axis + 1 :]
        rows = axes.positions(len(positions))
        full = (*rows[:axis], axes.model, *rows[axis:])
        placements: dict[str, Placement] = {"logits": full}
    else:
        positions = arrays.hidden.shape[:-1]
        rows = axes.positions(len(positions))
        full = (*rows, axes.model)
        placements = {"hidden": (*rows, ()), "classifier": (axes.model, ()), "bias": (axes.model,)}
    if 0 in positions:
        return spec.local(call, arrays)
    # A teacher's classes, wherever they lie, are on every device that shares a position's.
    of_target = (*rows, ()) if isinstance(call, SparseSpec) else rows if is_index(arrays.target) else full
    placements |= {
        "target": of_target,
        "mask": rows,
        "weight": ((),),
        "normalizer": () if arrays.normalizer is None else ((),) * jnp.ndim(arrays.normalizer),
        "ids": (*rows, ()),
    }

    def body(shard_axes: ShardAxes, shards: dict[str, Any]) -> Any:
        return spec.local(call.on_shards(shard_axes), type(arrays)(**shards))

    return map_shards(axes, arrays._asdict(), placements, positions, body, loss)
