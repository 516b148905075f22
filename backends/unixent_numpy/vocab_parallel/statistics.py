"""The statistics of rows whose classes lie on several processes.

They are those of `unixent_numpy.kernel.rows`, computed by all-reduces over the model group: a maximum, then sums. With
class indices the pivot is the target, the maximum is that of the other logits, and a position sends 3 numbers (4 under
smoothing). With probabilities the pivot is the largest logit, whose process has to be found first: 7 numbers. A maximum
may lose a NaN on its way, so NaN travels in the sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unixent.pivot import RowStats, ShareStats, not_minus_inf, row_stats
from unixent.semantics import product
from unixent_numpy.compat import Array
from unixent_numpy.kernel.rows import multiply
from unixent_numpy.vocab_parallel import native
from unixent_numpy.vocab_parallel.blocks import LocalLogits


class VocabParallelStats(NamedTuple):
    """One number for each position, the same on every process but for the first two.

    Attributes:
        owns_pivot: this process holds the pivot.
        local_pivot: its index among the local classes; any number where another process holds it.
        shift: m, the maximum of the other classes.
        pivot_logit: x_k.
        rows: the scalars that follow.
        pivot_coef: t_k.
        rest_coef: the sum of t_c over the other classes.
        losses: the losses of positions of weight 1.
    """

    owns_pivot: Array
    local_pivot: Array
    shift: Array
    pivot_logit: Array
    rows: RowStats
    pivot_coef: Array
    rest_coef: Array
    losses: Array


def index_stats(local: LocalLogits, index: Array) -> VocabParallelStats:
    """Class indices: the pivot is the target, on the process that owns it."""
    shard, coefs, group = local.shard, local.coefs, local.shard.group
    local_index = index - shard.vocab_start
    owns_target = (local_index >= 0) & (local_index < shard.num_local_classes)
    share = share_stats(local, np.where(owns_target, local_index, -1))
    logits_max = group.all_reduce(share.max_rest, "MAX")
    shift = not_minus_inf(np, logits_max)
    sum_rest, weighted_gaps = share.with_indices(np, shift)
    sums = np.stack([sum_rest, share.pivot_logit, *([] if coefs.smoothing is None else [weighted_gaps])])
    sum_rest, target_logit, *smoothing_sum = group.all_reduce(sums, "SUM")
    rows = pivot_stats(logits_max, target_logit, sum_rest)

    pivot_coef, rest_coef = coefs.of_probability[index], local.zeros()
    if coefs.smoothing is not None:
        pivot_coef, rest_coef = pivot_coef + coefs.smoothing.base[index], coefs.smoothing.without[index]
    losses = product(np, pivot_coef, rows.loss)
    if coefs.smoothing is not None:
        losses = losses + smoothing_sum[0] + product(np, rest_coef, rows.logsumexp_minus_shift)
    losses = with_z_loss(losses, rows, local)
    return VocabParallelStats(owns_target, local_index, shift, target_logit, rows, pivot_coef, rest_coef, losses)


def probability_stats(local: LocalLogits) -> VocabParallelStats:
    """Probabilities: the pivot is the largest logit, on the first process that holds one as large."""
    group, share = local.shard.group, share_stats(local, None)
    pivot_logit = group.all_reduce(share.pivot_logit.copy(), "MAX")
    is_candidate = (share.pivot_logit == pivot_logit) & (local.shard.num_local_classes > 0)
    candidates = np.where(is_candidate, -group.rank, -np.inf).astype(pivot_logit.dtype)
    owns_pivot = is_candidate & (group.all_reduce(candidates, "MAX") == -group.rank)
    share = share.with_probabilities(np, pivot_logit, owns_pivot)
    logits_max = group.all_reduce(share.max_rest.copy(), "MAX")
    shift = not_minus_inf(np, logits_max)
    sum_rest = share.sum_rest * np.exp(share.max_rest - shift)
    sums = np.stack([sum_rest, share.weighted_gaps, share.rest_coef, share.pivot_coef])
    sum_rest, weighted_gaps, rest_coef, pivot_coef = group.all_reduce(sums, "SUM")
    rows = pivot_stats(logits_max, pivot_logit, sum_rest)
    losses = with_z_loss(weighted_gaps + (rest_coef + pivot_coef) * rows.loss, rows, local)
    return VocabParallelStats(owns_pivot, share.pivot, shift, pivot_logit, rows, pivot_coef, rest_coef, losses)


def share_stats(local: LocalLogits, index: Array | None) -> ShareStats:
    """What this process finds in its share of the classes; ``index`` is -1 where another process holds the target."""
    share = native.share_stats(local, index)
    if share is not None:
        return share
    pivot = np.zeros(local.count, np.intp) if index is None else index
    columns = ShareStats(pivot, *local.zeros(6))
    columns.max_rest[...] = -np.inf
    if index is None:
        columns.pivot_logit[...] = -np.inf
    if not local.shard.num_local_classes:
        return columns

    def work(rows: slice, block: Array) -> None:
        if index is None:
            pivot[rows] = block.argmax(axis=1)
        at = np.flatnonzero(pivot[rows] >= 0), pivot[rows][pivot[rows] >= 0]
        columns.pivot_logit[rows][at[0]] = block[at]
        block[at] = -np.inf
        columns.max_rest[rows] = block.max(axis=1)
        target_coefs = local.target_coefs(rows)
        if target_coefs is not None:
            level = (columns.max_rest if index is not None else columns.pivot_logit)[rows]
            gaps = np.subtract(not_minus_inf(np, level)[:, None], block, out=local.scratch("logit_gaps", rows))
            columns.pivot_coef[rows][at[0]] = target_coefs[at]
            target_coefs[at] = 0
            multiply(gaps, target_coefs)
            columns.weighted_gaps[rows] = gaps.sum(axis=1)
            columns.rest_coef[rows] = target_coefs.sum(axis=1)
        columns.sum_rest[rows] = exponentials(block, not_minus_inf(np, columns.max_rest[rows])).sum(axis=1)

    local.for_each(work)
    return columns


def exponentials(block: Array, shift: Array) -> Array:
    """The block itself, as exp(x_c - shift)."""
    block -= shift[:, None]
    return np.exp(block, out=block)


def pivot_stats(logits_max: Array, pivot_logit: Array, sum_rest: Array) -> RowStats:
    """`row_stats` of reduced sums. Where no other class is left, the pivot is its own shift."""
    return row_stats(np, np.where(np.isneginf(logits_max), pivot_logit, logits_max), pivot_logit, sum_rest)


def with_z_loss(losses: Array, rows: RowStats, local: LocalLogits) -> Array:
    """The losses and z lse^2."""
    return losses + local.spec.z_loss * np.square(rows.logsumexp) if local.spec.z_loss else losses
