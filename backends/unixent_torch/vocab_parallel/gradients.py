"""The gradient of a loss whose classes lie on several processes, from its statistics: nothing is communicated."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent_torch.collectives import LocalShard
from unixent_torch.kernel import KernelSpec
from unixent_torch.kernel.rows import scale_infinite_
from unixent_torch.vocab_parallel.blocks import LocalLogits, exp_without_pivot, put_where
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
    exps: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The gradient of ``sum(grad_scale * losses)`` for each of ``wrt``, at the local classes. Nothing is communicated.

    Args:
        x, target, weight, position_weight, spec, shard: as `shard_losses` takes them.
        grad_scale: in the accumulation dtype and broadcastable to P, or a number; None for 1.
        stats: what `shard_losses` returned.
        wrt: "logits", "target".
        exps: what was given to `shard_losses` as ``exps_out``; becomes the gradient of the logits. It can be ``x``
            itself where that is not read again: without softcap and gradient of the target.
    """
    local = LocalLogits(x, target, weight, spec, shard)
    if isinstance(grad_scale, Tensor) and grad_scale.ndim:
        grad_scale = grad_scale.expand(x.shape[:-1]).reshape(-1, 1)
    inactive = None
    if position_weight is not None:
        position_weight = position_weight.reshape(-1, 1)
        grad_scale = position_weight if grad_scale is None else position_weight * grad_scale
        inactive = position_weight == 0
    results = {"logits": torch.empty_like(x) if exps is None else exps} if "logits" in wrt else {}
    if "target" in wrt:
        results["target"] = torch.empty_like(target)
    exp_grad, pivot_grad = (stats.coef_sum + z_loss_grad(stats.logsumexp, spec)) * stats.exp_scale, stats.pivot_grad
    early = local.coefs is None and grad_scale is not None
    if early:  # where every entry is a product, one more factor of the rows costs no pass over the classes
        exp_grad, pivot_grad = exp_grad * grad_scale, pivot_grad * grad_scale

    def finish(out: Tensor, block: Tensor, rows: slice, in_place: bool, by_target: bool = False) -> None:
        """Scale a block and put it where it belongs, rounded; inactive rows as zeros."""
        if grad_scale is not None and not early:
            scale = grad_scale[rows] if isinstance(grad_scale, Tensor) and grad_scale.ndim else grad_scale
            if by_target:
                scale_infinite_(block, scale, local.readable)
            else:
                block.mul_(scale)
        if inactive is not None:
            block.masked_fill_(inactive[rows], 0)
        if not in_place:
            out.copy_(block.view(out.shape))

    for rows, pieces in local.pieces(*results.values()):
        outs = dict(zip(results, pieces[-len(results) :], strict=True))
        if "logits" in outs:
            kept = None if exps is None else outs["logits"]
            block = _logits_gradient(local, pieces, rows, stats, exp_grad, pivot_grad, kept)
            finish(outs["logits"], block, rows, exps is not None)
        if "target" in outs:
            gaps = local.logit_gaps(local.read(pieces[0]), stats.pivot_logit[rows])
            gaps.add_(stats.pivot_loss[rows]).mul_(local.probability_grad)
            finish(outs["target"], gaps.masked_fill_(local.probability_grad == 0, 0), rows, False, True)
    return tuple(results[name] for name in wrt)


def _logits_gradient(
    local: LocalLogits,
    pieces: tuple[Tensor, ...],
    rows: slice,
    stats: ShardStats,
    exp_grad: Tensor,
    pivot_grad: Tensor,
    exps: Tensor | None,
) -> Tensor:
    """A block of gradients: ``exp_grad`` times the exponentials, less t_c; and ``pivot_grad`` at the pivot."""
    column, owned, softcap_grad = stats.local_index[rows], stats.owns_pivot[rows], None
    count = rows.stop - rows.start
    if local.spec.softcap is not None:
        softcap_grad = local.buffer("softcap_grad", count)
    if exps is None:
        shift = stats.shift[rows]
        if softcap_grad is None:
            block = local.shifted(pieces[0], shift)
        else:
            block = local.read(pieces[0], softcap_grad=softcap_grad).sub_(shift)
        block = exp_without_pivot(block, owned, column)
    else:
        block = exps.view(count, local.num_local_classes)
        if softcap_grad is not None:
            local.read(pieces[0], softcap_grad=softcap_grad)
    block.mul_(exp_grad[rows])
    if local.probabilities is not None:
        block.sub_(local.target_coefs(pieces[1]))
    elif local.coefs is not None:
        block.sub_(local.smoothing)
    put_where(block, owned, column, pivot_grad[rows])
    return block if softcap_grad is None else block.mul_(softcap_grad)
