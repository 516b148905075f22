"""The pass over the logits of one process's classes."""

from __future__ import annotations

from functools import partial

import numpy as np

from unixent.protocol import Sharding
from unixent_numpy.collectives import group_of
from unixent_numpy.compat import Array
from unixent_numpy.kernel import KernelSpec, RowLosses
from unixent_numpy.kernel.blocks import Rows
from unixent_numpy.kernel.composed import empty_grads
from unixent_numpy.kernel.rows import multiply, scale_rows, through_transform
from unixent_numpy.vocab_parallel import native
from unixent_numpy.vocab_parallel.blocks import LocalLogits, Shard
from unixent_numpy.vocab_parallel.statistics import (
    VocabParallelStats,
    exponentials,
    index_stats,
    probability_stats,
)


def vocab_parallel_row_losses(sharding: Sharding) -> RowLosses:
    """The pass over the logits of this process's classes, as `unixent_numpy.kernel` has it for all of them."""
    group = group_of(sharding.model_group)
    num_local_classes = sharding.classes_per_rank[group.rank]
    shard = Shard(group, sharding.vocab_start(group.rank), num_local_classes, sharding.num_classes)
    return partial(row_losses, shard)


def row_losses(
    shard: Shard,
    x: Array,
    target: Array,
    weight: Array | None,
    position_weight: Array | None,
    grad_scale: Array | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
    out: tuple[Array, ...] | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Implements the contract of `unixent_numpy.kernel`; ``weight`` and class indices are those of all classes."""
    index = target.reshape(-1) if target.dtype.kind == "i" else None
    local = LocalLogits(x, target if index is None else None, weight, spec, shard)
    stats = probability_stats(local) if index is None else index_stats(local, index)
    losses = stats.losses
    if position_weight is not None:
        position_weight = position_weight.reshape(-1)
        losses = np.where(position_weight == 0, 0, losses * position_weight)
    if wrt:
        assert grad_scale is not None
        out = empty_grads(x, target, wrt) if out is None else out
        grad_scale = np.broadcast_to(grad_scale, x.shape[:-1]).reshape(-1)
        _write_gradients(local, stats, grad_scale, position_weight, wrt, out)
    return losses.reshape(x.shape[:-1]), out or ()


def _write_gradients(
    local: LocalLogits,
    stats: VocabParallelStats,
    grad_scale: Array,
    position_weight: Array | None,
    wrt: tuple[str, ...],
    out: tuple[Array, ...],
) -> None:
    """Write the gradients of the local logits and probabilities; nothing is communicated.

    d loss / d x_c = (T + 2 z lse) p_c - t_c;   at the pivot: (T - t_k + 2 z lse) p_k - t_k (1 - p_k)
    """
    row = stats.rows
    z_loss_grad = 2 * local.spec.z_loss * row.logsumexp if local.spec.z_loss else np.zeros_like(row.logsumexp)
    rest_scale = (stats.rest_coef + stats.pivot_coef + z_loss_grad) * row.exp_scale
    pivot_grad = stats.rest_coef * row.p - stats.pivot_coef * row.one_minus_p + z_loss_grad * row.p
    columns = (rest_scale, stats.pivot_logit, stats.shift, pivot_grad, row.loss)
    pivot = np.where(stats.owns_pivot, stats.local_pivot, -1)
    if native.share_gradients(local, columns, pivot, position_weight, grad_scale, wrt, out):
        return
    grads = dict(zip(wrt, map(Rows, out), strict=True))
    inactive = None if position_weight is None else position_weight == 0

    def write(grad: Rows, rows: slice, block: Array) -> None:
        if inactive is not None:
            block[inactive[rows]] = 0
        grad.write(rows, block)

    def work(rows: slice, block: Array, softcap_grad: Array | None) -> None:
        if "target" in grads:
            nll = np.subtract(stats.pivot_logit[rows][:, None], block, out=local.scratch("logit_gaps", rows))
            nll += row.loss[rows][:, None]
            multiply(nll, local.coefs_of_probability)
            scale_rows(nll, grad_scale[rows])
            write(grads["target"], rows, nll)
        if "logits" in grads:
            exponentials(block, stats.shift[rows])
            block *= rest_scale[rows][:, None]
            target_coefs = local.target_coefs(rows)
            if target_coefs is not None:
                block -= target_coefs
            owned = stats.owns_pivot[rows]
            block[owned, pivot[rows][owned]] = pivot_grad[rows][owned]
            block *= grad_scale[rows][:, None]
            through_transform(block, local.spec.transform, softcap_grad)
            write(grads["logits"], rows, block)

    local.for_each_with_grad(work)
