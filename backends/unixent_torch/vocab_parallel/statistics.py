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

from unixent.semantics import product, row_stats, two_diff
from unixent_torch.collectives import LocalShard, all_reduce
from unixent_torch.kernel import KernelSpec
from unixent_torch.kernel.blocks import row_sum
from unixent_torch.vocab_parallel.blocks import LocalLogits, exp_without_pivot, put_where


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
    exps_out: Tensor | None = None,
) -> tuple[Tensor, ShardStats]:
    """Losses of shape P in the accumulation dtype, the same on every process of the model groups, and their statistics.

    Args:
        x: the logits of this process's classes, P + (local classes,), any strides; no class is legal.
        target: int64 indices P in [0, C), or the probabilities of this process's classes.
        weight, position_weight: as `unixent_torch.kernel.row_losses` takes them; ``weight`` is that of all classes.
        spec, shard: the static options, and how the classes are split.
        exps_out: contiguous memory of the shape of ``x`` and the accumulation dtype to leave the exponentials in, for
            `unixent_torch.vocab_parallel.gradients.shard_gradients`; may be ``x`` itself.
    """
    local = LocalLogits(x, target, weight, spec, shard)
    losses, stats = _index_losses(local, exps_out) if local.index is not None else _mixed_losses(local, exps_out)
    if position_weight is not None:
        position_weight = position_weight.reshape(-1, 1)
        losses = torch.where(position_weight == 0, 0, losses * position_weight)
    return losses.view(x.shape[:-1]), stats


def _index_losses(local: LocalLogits, exps_out: Tensor | None) -> tuple[Tensor, ShardStats]:
    """Class indices: the pivot is the target, on the process that holds it."""
    assert local.index is not None
    index, shard, coefs = local.index, local.shard, local.coefs
    column = index - shard.vocab_start
    owned = (column >= 0) & (column < local.num_local_classes)
    column = torch.where(owned, column, 0)
    max_rest, sums = local.columns().fill_(-math.inf), local.columns(2 if coefs is None else 3)
    for rows, (piece,) in local.pieces():
        block = local.read(piece)
        sums[1, rows] = torch.where(owned[rows], block.gather(1, column[rows]), 0)
        put_where(block, owned[rows], column[rows], -math.inf)
        max_rest[rows] = block.amax(1, keepdim=True)
    max_rest = all_reduce(max_rest, shard.model_groups, "max")
    shift = torch.where(max_rest == -math.inf, 0, max_rest)
    for rows, (piece, *out) in local.pieces(exps_out):
        block = local.shifted(piece, shift[rows], *out)
        if coefs is not None:
            gaps = torch.neg(block, out=local.buffer("logit_gaps", len(block)))
            put_where(gaps, owned[rows], column[rows], 0.0)
            sums[2, rows] = row_sum(gaps.mul_(local.smoothing).masked_fill_(local.smoothing == 0, 0))
        sums[0, rows] = row_sum(exp_without_pivot(block, owned[rows], column[rows]))
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
        local_index=column,
        owns_pivot=owned,
        shift=shift,
        exp_scale=stats.exp_scale,
        p=stats.p,
        coef_sum=target_coef + rest_coef,
        logsumexp=stats.logsumexp,
        pivot_logit=pivot_logit,
        pivot_loss=stats.loss,
        pivot_grad=rest_grad * stats.p - target_coef * stats.one_minus_p,
    )


def _mixed_losses(local: LocalLogits, exps_out: Tensor | None) -> tuple[Tensor, ShardStats]:
    """Probabilities: the pivot is the largest logit, one on each process that holds one as large."""
    local_max, local_second = local.columns().fill_(-math.inf), local.columns().fill_(-math.inf)
    column = torch.zeros_like(local_max, dtype=torch.int64)
    for rows, (piece, _) in local.pieces():
        block = local.read(piece)
        column[rows] = block.argmax(1, keepdim=True)
        local_max[rows] = block.gather(1, column[rows])
        block.scatter_(1, column[rows], -math.inf)
        local_second[rows] = block.amax(1, keepdim=True)
    pivot_logit = all_reduce(local_max.clone(), local.shard.model_groups, "max")
    owned = (local_max == pivot_logit) & (local.num_local_classes > 0)
    max_rest = torch.where(owned, local_second, local_max)
    shift = torch.where(max_rest == -math.inf, 0, max_rest)
    sums, sum_rest, pivot_coef = local.columns(5), local.columns(), local.columns()
    for rows, (piece, probabilities, *out) in local.pieces(exps_out):
        block, target_coefs = local.read(piece, *out), local.target_coefs(probabilities)
        at = (owned[rows], column[rows])
        gaps = local.logit_gaps(block, pivot_logit[rows])
        put_where(gaps, *at, 0.0)
        sums[1, rows] = row_sum(gaps.mul_(target_coefs).masked_fill_(target_coefs == 0, 0))
        pivot_coef[rows] = torch.where(owned[rows], target_coefs.gather(1, column[rows]), 0)
        put_where(target_coefs, *at, 0.0)
        sums[2, rows] = row_sum(target_coefs)
        sum_rest[rows] = row_sum(exp_without_pivot(block.sub_(shift[rows]), *at))
    # D = max_rest - x_k <= 0; exp(D) is subnormal before sum_rest * exp(D) is: take two halves in turn.
    gap, dropped = two_diff(torch, torch.where(sum_rest == 0, pivot_logit, max_rest), pivot_logit)
    half = torch.exp(gap / 2)
    sums[0] = (sum_rest * half) * half * (1 + dropped)
    sums[3], sums[4] = pivot_coef, owned
    sums = _sum_over_classes(local, sums)
    # Each further logit as large as the pivot adds 1. A row with none is one of NaN.
    undefined = (pivot_logit == math.inf) | (sums[4] == 0)
    odds = torch.where(undefined, math.nan, sums[0] + (sums[4] - 1))
    pivot_loss, norm, coef_sum = torch.log1p(odds), 1 + odds, sums[2] + sums[3]
    logsumexp = pivot_logit + pivot_loss
    rest_grad = sums[2] + (sums[3] - pivot_coef) + z_loss_grad(logsumexp, local.spec)
    return _with_z_loss(sums[1] + product(torch, coef_sum, pivot_loss), logsumexp, local.spec), ShardStats(
        local_index=column,
        owns_pivot=owned,
        shift=shift,
        exp_scale=half * half / norm,
        p=1 / norm,
        coef_sum=coef_sum,
        logsumexp=logsumexp,
        pivot_logit=pivot_logit,
        pivot_loss=pivot_loss,
        pivot_grad=(rest_grad - pivot_coef * odds) / norm,
    )


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
