"""The loss of positions whose classes lie on several processes: local passes over the logits, reductions between.

The statistics are those of `unixent_torch.kernel.rows`, over processes. Two all-reduces find them, a maximum and then
sums:

class indices    The pivot is the target. Maximum: the largest logit of the other classes. Sums: their exponentials, the
                 target's logit and, under smoothing, their weighted distances from that maximum: 2 numbers a position,
                 or 3.
probabilities    The pivot is the largest logit. Maximum: that one. Each process then takes its own exponentials
                 relative to its own largest logit but the pivot, and adds its part of t = (1 - p) / p. Sums: t, the
                 weighted distances, the coefficients of the other classes and of the pivot, and how many processes
                 hold a logit as large: 5 numbers.

They are enough for the gradient, in `unixent_torch.vocab_parallel.gradients`. A maximum may lose a NaN on its way, so
NaN is left to travel in the sums.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from unixent.pivot import ShareStats, not_minus_inf, row_stats, two_diff
from unixent.semantics import product
from unixent_torch.collectives import LocalShard, all_reduce
from unixent_torch.kernel import KernelSpec
from unixent_torch.kernel.blocks import row_sum
from unixent_torch.vocab_parallel import native, on_cuda
from unixent_torch.vocab_parallel.blocks import LocalLogits, put_where, value_where


class ShardStats(NamedTuple):
    """The statistics of all processes together, a column [N, 1] each.

    Attributes:
        local_index: the pivot's column here; anything where another process holds it.
        owns_pivot: whether this one does.
        shift, exp_scale: p_c = exp_scale * exp(x_c - shift) for every local class but the pivot.
        p: p of the pivot.
        coef_sum: sum of the target's coefficients t_c.
        logsumexp: log-sum-exp.
        pivot_logit, pivot_loss: the pivot's logit and its negative log-probability.
        pivot_grad: the gradient there, of the loss without position weight.
    """

    local_index: Tensor
    owns_pivot: Tensor
    shift: Tensor
    exp_scale: Tensor
    p: Tensor
    coef_sum: Tensor
    logsumexp: Tensor
    pivot_logit: Tensor
    pivot_loss: Tensor
    pivot_grad: Tensor


def shard_losses(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    spec: KernelSpec,
    shard: LocalShard,
) -> tuple[Tensor, ShardStats]:
    """Losses of shape P in the accumulation dtype, the same on every process of the model groups, and their statistics.

    Args:
        x: the logits of this process's classes, P + (local classes,), any strides; no class is legal.
        target: int64 indices P in [0, C), or the probabilities of this process's classes.
        weight, position_weight: as `unixent_torch.kernel.row_losses` takes them; ``weight`` is that of all classes.
        spec, shard: the static options, and how the classes are split.
    """
    local = LocalLogits(x, target, weight, spec, shard)
    losses, stats = _index_losses(local) if local.index is not None else _mixed_losses(local)
    if position_weight is not None:
        position_weight = position_weight.reshape(-1, 1)
        losses = torch.where(position_weight == 0, 0, losses * position_weight)
    return losses.view(x.shape[:-1]), stats


def _index_losses(local: LocalLogits) -> tuple[Tensor, ShardStats]:
    """Class indices: the pivot is the target, on the process that holds it."""
    assert local.index is not None
    index, coefs = local.index, local.coefs
    share = _share_stats(local)
    max_rest = all_reduce(share.max_rest.clone(), local.shard.model_groups, "max")
    shift = not_minus_inf(torch, max_rest)
    sum_rest, weighted_gaps = share.with_indices(torch, shift)
    sums = torch.stack([sum_rest, share.pivot_logit, *([] if coefs is None else [weighted_gaps])])
    sums = _sum_over_classes(local, sums)
    pivot_logit = sums[1]
    # Where no other class is left the pivot is its own shift, as in `pivot_stats`.
    stats = row_stats(torch, torch.where(max_rest == -math.inf, pivot_logit, max_rest), pivot_logit, sums[0])
    target_coef = torch.ones_like(pivot_logit) if local.weight is None else local.weight[index]
    rest_coef = torch.zeros_like(pivot_logit)
    loss = stats.loss
    if coefs is not None:
        target_coef = coefs.one_minus_smoothing * target_coef + coefs.smoothing[index]
        rest_coef = coefs.smoothing_sum_rest[index]
        loss = (
            product(torch, target_coef, stats.loss) + sums[2] + product(torch, rest_coef, stats.logsumexp_minus_shift)
        )
    elif local.weight is not None:
        loss = product(torch, target_coef, stats.loss)
    rest_grad = rest_coef + z_loss_grad(stats.logsumexp, local.spec)
    return _with_z_loss(loss, stats.logsumexp, local.spec), ShardStats(
        local_index=share.pivot,
        owns_pivot=local.owns_target,
        shift=shift,
        exp_scale=stats.exp_scale,
        p=stats.p,
        coef_sum=target_coef + rest_coef,
        logsumexp=stats.logsumexp,
        pivot_logit=pivot_logit,
        pivot_loss=stats.loss,
        pivot_grad=rest_grad * stats.p - target_coef * stats.one_minus_p,
    )


def _mixed_losses(local: LocalLogits) -> tuple[Tensor, ShardStats]:
    """Probabilities: the pivot is the largest logit, one on each process that holds one as large."""
    share = _share_stats(local)
    pivot_logit = all_reduce(share.pivot_logit.clone(), local.shard.model_groups, "max")
    owned = (share.pivot_logit == pivot_logit) & (local.num_local_classes > 0)
    share = share.with_probabilities(torch, pivot_logit, owned)
    # D = max_rest - x_k <= 0; exp(D) is subnormal before sum_rest * exp(D) is: take two halves in turn.
    gap, dropped = two_diff(torch, torch.where(share.sum_rest == 0, pivot_logit, share.max_rest), pivot_logit)
    half = torch.exp(gap / 2)
    odds = (share.sum_rest * half) * half * (1 + dropped)
    sums = [odds, share.weighted_gaps, share.rest_coef, share.pivot_coef, owned.to(odds.dtype)]
    odds, weighted_gaps, rest_coef, pivot_coef, num_pivots = _sum_over_classes(local, torch.stack(sums))
    # Each further logit as large as the pivot adds 1. A row with none is one of NaN.
    undefined = (pivot_logit == math.inf) | (num_pivots == 0)
    odds = torch.where(undefined, math.nan, odds + (num_pivots - 1))
    pivot_loss, norm, coef_sum = torch.log1p(odds), 1 + odds, rest_coef + pivot_coef
    logsumexp = pivot_logit + pivot_loss
    rest_grad = rest_coef + (pivot_coef - share.pivot_coef) + z_loss_grad(logsumexp, local.spec)
    return _with_z_loss(weighted_gaps + product(torch, coef_sum, pivot_loss), logsumexp, local.spec), ShardStats(
        local_index=share.pivot,
        owns_pivot=owned,
        shift=not_minus_inf(torch, share.max_rest),
        exp_scale=half * half / norm,
        p=1 / norm,
        coef_sum=coef_sum,
        logsumexp=logsumexp,
        pivot_logit=pivot_logit,
        pivot_loss=pivot_loss,
        pivot_grad=(rest_grad - share.pivot_coef * odds) / norm,
    )


def _share_stats(local: LocalLogits) -> ShareStats:
    """What this process finds in its share of the classes, a column [N, 1] each."""
    is_index = local.index is not None
    target = local.index if local.index is not None else local.probabilities
    assert target is not None
    if on_cuda.takes(local.x, target, local.weight, local.spec):
        return on_cuda.share_stats(local)
    share = native.share_stats(local)
    if share is not None:
        return share
    if is_index:
        pivot, owned = local.local_index, local.owns_target
    else:
        pivot = torch.zeros((local.num_rows, 1), dtype=torch.int64, device=local.x.device)
        owned = torch.ones_like(pivot, dtype=torch.bool)
    columns = ShareStats(pivot, *local.columns(6))
    if not is_index:
        columns.pivot_logit.fill_(-math.inf)
    columns.max_rest.fill_(-math.inf)
    for rows, pieces in local.pieces():
        block = local.read(pieces[0])
        if not is_index:
            pivot[rows] = block.argmax(1, keepdim=True)
        at = (owned[rows], pivot[rows])
        columns.pivot_logit[rows] = level = value_where(block, *at)
        put_where(block, *at, -math.inf)
        columns.max_rest[rows] = max_rest = block.amax(1, keepdim=True)
        if local.coefs is not None:
            level = not_minus_inf(torch, max_rest if is_index else level)
            gaps = torch.sub(level, block, out=local.buffer("logit_gaps", len(block)))
            target_coefs = local.target_coefs(None if is_index else pieces[1], len(block))
            columns.pivot_coef[rows] = value_where(target_coefs, *at)
            put_where(target_coefs, *at, 0.0)
            columns.weighted_gaps[rows] = row_sum(gaps.mul_(target_coefs).masked_fill_(target_coefs == 0, 0))
            columns.rest_coef[rows] = row_sum(target_coefs)
        columns.sum_rest[rows] = row_sum(block.sub_(not_minus_inf(torch, max_rest)).exp_())
    return columns


def _sum_over_classes(local: LocalLogits, sums: Tensor) -> Tensor:
    """The sums over the classes of all processes."""
    groups = local.shard.model_groups
    if not torch.compiler.is_compiling():
        return all_reduce(sums, groups, "sum")
    # A compiled program takes all processes to hold as many classes. Where they don't, the loss is NaN, not a number
    # that looks like one.
    flat = torch.cat([sums.reshape(-1), sums.new_full((1,), float(local.num_local_classes))])
    flat = all_reduce(flat, groups, "sum")
    return torch.where(flat[-1] == local.shard.num_classes, flat[:-1].view_as(sums), math.nan)


def _with_z_loss(loss: Tensor, logsumexp: Tensor, spec: KernelSpec) -> Tensor:
    return loss + spec.z_loss * logsumexp.square() if spec.z_loss else loss


def z_loss_grad(logsumexp: Tensor, spec: KernelSpec) -> Tensor | float:
    """The derivative of the z-loss along lse, which adds to the sum of the coefficients."""
    return 2 * spec.z_loss * logsumexp if spec.z_loss else 0.0
