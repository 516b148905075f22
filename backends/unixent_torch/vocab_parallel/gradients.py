"""The gradient of a loss whose classes lie on several processes, from its statistics: nothing is communicated."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent_torch.collectives import LocalShard
from unixent_torch.kernel import KernelSpec
from unixent_torch.kernel.rows import scale_infinite_, through_transform
from unixent_torch.vocab_parallel import native, on_cuda
from unixent_torch.vocab_parallel.blocks import LocalLogits, put_where
from unixent_torch.vocab_parallel.statistics import ShardStats, z_loss_grad


def shard_gradients(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | float | None,
    stats: ShardStats,
    spec: KernelSpec,
    shard: LocalShard,
    wrt: tuple[str, ...],
    out: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """The gradient of ``sum(grad_scale * losses)`` for each of ``wrt``, at the local classes. Nothing is communicated.

    Args:
        x, target, weight, position_weight, spec, shard: as `shard_losses` takes them.
        grad_scale: in the accumulation dtype and broadcastable to P, or a number; None for 1.
        stats: what `shard_losses` returned.
        wrt: "logits", "target".
        out: where to put the gradients; ``x`` itself may take its own.
    """
    exp_grad = (stats.coef_sum + z_loss_grad(stats.logsumexp, spec)) * stats.exp_scale
    columns = (exp_grad, stats.pivot_logit, stats.shift, stats.pivot_grad, stats.pivot_loss)
    pivot = torch.where(stats.owns_pivot, stats.local_index, -1)
    operands = (x, target, weight, position_weight, grad_scale, columns, pivot, spec, shard, wrt, out)
    if on_cuda.takes(x, target, weight, spec):
        return on_cuda.share_gradients(*operands)
    done = native.share_gradients(*operands)
    if done is not None:
        return done
    local = LocalLogits(x, target, weight, spec, shard)
    if isinstance(grad_scale, Tensor) and grad_scale.ndim:
        grad_scale = grad_scale.expand(x.shape[:-1]).reshape(-1, 1)
    inactive = None
    if position_weight is not None:
        position_weight = position_weight.reshape(-1, 1)
        grad_scale = position_weight if grad_scale is None else position_weight * grad_scale
        inactive = position_weight == 0
    results = out or tuple([torch.empty_like(x if name == "logits" else target) for name in wrt])

    def store(out: Tensor, block: Tensor, rows: slice) -> None:
        if inactive is not None:
            block.masked_fill_(inactive[rows], 0)
        out.copy_(block.view(out.shape))

    for rows, pieces in local.pieces(*results):
        outs = dict(zip(wrt, pieces[-len(wrt) :], strict=True))
        scale: Tensor | float = 1.0 if grad_scale is None else grad_scale
        scale = scale[rows] if isinstance(scale, Tensor) and scale.ndim else scale
        softcap_grad = None if spec.transform.softcap is None else local.buffer("softcap_grad", rows.stop - rows.start)
        block = local.read(pieces[0], softcap_grad)
        if "target" in outs:
            gaps = torch.sub(stats.pivot_logit[rows], block, out=local.buffer("logit_gaps", len(block)))
            gaps.add_(stats.pivot_loss[rows]).mul_(local.probability_grad)
            gaps.masked_fill_(local.probability_grad == 0, 0)
            store(outs["target"], scale_infinite_(gaps, scale), rows)
        if "logits" in outs:
            block.sub_(stats.shift[rows]).exp_().mul_(exp_grad[rows])
            if local.coefs is not None:
                block.sub_(local.target_coefs(pieces[1] if local.index is None else None, len(block)))
            put_where(block, stats.owns_pivot[rows], stats.local_index[rows], stats.pivot_grad[rows])
            block.mul_(scale)
            store(outs["logits"], through_transform(block, spec.transform, softcap_grad), rows)
    return results
