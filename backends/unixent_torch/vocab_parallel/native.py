"""The two halves of the pass over a share of the classes by the native library, for plain tensors in host memory."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.pivot import ShareStats
from unixent_native import Share, load
from unixent_native.library import Library
from unixent_torch.collectives import LocalShard
from unixent_torch.kernel import KernelSpec, native
from unixent_torch.vocab_parallel.blocks import LocalLogits, local_weight


def _library(num_local_classes: int) -> Library | None:
    return load() if num_local_classes and not torch.compiler.is_compiling() else None


def share_stats(local: LocalLogits) -> ShareStats | None:
    """What this process finds in its share, a column [N, 1] each; None for tensors that the library does not take."""
    library = _library(local.num_local_classes)
    if library is None:
        return None
    x, target = local.x, local.probabilities
    columns = x.new_empty((len(ShareStats._fields), local.num_rows, 1), dtype=torch.float64)
    if target is None:
        target = torch.where(local.owns_target, local.local_index, -1).view(x.shape[:-1])
    share = Share(columns, local.shard.num_classes)
    weight = local_weight(local.weight, local.shard, local.num_local_classes)
    if native.row_losses(library, x, target, weight, None, None, local.spec, share=share) is None:
        return None
    pivot = columns[0].long() if local.index is None else local.local_index
    return ShareStats(pivot, *columns[1:].to(local.spec.acc_dtype))


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
) -> tuple[Tensor, ...] | None:
    """The gradients at this process's classes, from ``columns`` as the library takes them."""
    library = _library(x.shape[-1])
    if library is None:
        return None
    pivot = pivot.view(x.shape[:-1])
    share = Share(torch.stack(columns).double(), shard.num_classes, pivot)
    target = target if target.is_floating_point() else pivot
    weight = local_weight(weight, shard, x.shape[-1])
    done = native.row_losses(library, x, target, weight, position_weight, grad_scale, spec, wrt, out, share)
    return None if done is None else done[1]
