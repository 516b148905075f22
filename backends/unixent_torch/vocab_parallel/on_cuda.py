"""The two halves of the pass over a share of the classes by the Triton programs: one read each, and a write."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.pivot import ShareStats, not_minus_inf
from unixent_torch.collectives import LocalShard
from unixent_torch.kernel import KernelSpec, triton
from unixent_torch.kernel.triton.columns import RowColumns
from unixent_torch.vocab_parallel.blocks import LocalLogits, local_weight


def takes(x: Tensor, target: Tensor, weight: Tensor | None, spec: KernelSpec) -> bool:
    """Whether the programs serve a share. Smoothed indices, whose pivot is the target, are the operators' work."""
    if not x.numel() or (spec.label_smoothing and not target.is_floating_point()):
        return False
    return x.device.type in triton.DEVICES and triton.takes(spec, x, target, weight)


def share_stats(local: LocalLogits) -> ShareStats:
    """What this process finds in its share, a column [N, 1] each."""
    if local.probabilities is None:
        index = torch.where(local.owns_target, local.local_index, -1).reshape(-1)
        max_rest, sum_rest, pivot_logit = triton.statistics_of_index_tiles(local.x, index, local.spec)
        largest = max_rest.amax(0)
        total = (sum_rest * torch.exp(max_rest - not_minus_inf(torch, largest))).sum(0)
        columns = (pivot_logit, largest, total)
        zeros = local.columns(3)
        return ShareStats(local.local_index, *[column.unsqueeze(-1) for column in columns], *zeros)
    weight = local_weight(local.weight, local.shard, local.num_local_classes)
    numbers, pivot = triton.statistics_of_mixed_tiles(
        local.x, local.probabilities, local.probabilities, weight, local.spec, local.shard.num_classes
    )
    # A tile is to the row what a process is to all of them.
    tiles = ShareStats(pivot.long(), *numbers)
    pivot_logit = tiles.pivot_logit.amax(0)
    each = torch.arange(len(pivot), device=pivot.device).unsqueeze(-1)
    owner = torch.where(tiles.pivot_logit == pivot_logit, each, len(pivot)).amin(0)
    own = torch.where(each == owner, tiles.pivot, 0).amax(0).clamp(max=local.num_local_classes - 1)
    tiles = tiles.with_probabilities(torch, pivot_logit, each == owner)
    largest = tiles.max_rest.amax(0)
    total = (tiles.sum_rest * torch.exp(tiles.max_rest - not_minus_inf(torch, largest))).sum(0)
    sums = (tiles.weighted_gaps.sum(0), tiles.rest_coef.sum(0), tiles.pivot_coef.sum(0))
    return ShareStats(*[column.unsqueeze(-1) for column in (own, pivot_logit, largest, total, *sums)])


def share_gradients(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | float | None,
    columns: tuple[Tensor, ...],
    pivot: Tensor,
    spec: KernelSpec,
    shard: LocalShard,
    wrt: tuple[str, ...],
    out: tuple[Tensor, ...] | None,
) -> tuple[Tensor, ...]:
    """The gradients at this process's classes, from ``columns`` as `native.share_gradients` takes them."""
    factor, pivot_logit, shift, pivot_grad, pivot_loss = columns
    rows = torch.stack([shift, factor, pivot_grad, pivot_logit, pivot_loss]).squeeze(-1)
    pivot = pivot.reshape(-1).contiguous()
    target = target if target.is_floating_point() else pivot.view(x.shape[:-1])
    weight = local_weight(weight, shard, x.shape[-1])
    operands = (x, target, weight, position_weight, grad_scale, spec, RowColumns(rows, pivot), wrt, out)
    return triton.row_gradients(*operands, shard.num_classes)
