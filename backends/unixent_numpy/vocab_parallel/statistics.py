"""The statistics of rows whose classes lie on several processes.

They are those of `unixent_numpy.kernel.rows`, computed by all-reduces over the model group: a maximum, then sums. With
class indices the pivot is the target, the maximum is that of the other logits, and a position sends 3 numbers (4 under
smoothing). With probabilities the pivot is the largest logit, whose process has to be found first: 7 numbers. A maximum
may lose a NaN on its way, so NaN travels in the sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unixent.semantics import RowStats, product, row_stats
from unixent_numpy.compat import Array
from unixent_numpy.kernel.rows import multiply
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


def set_at_pivot(block: Array, owns_pivot: Array, local_pivot: Array, value: Any) -> None:
    """Put ``value`` where this process holds the pivot."""
    block[owns_pivot, local_pivot[owns_pivot]] = value


def local_max(block: Array) -> Array:
    """The largest logit of each row; -inf where no class is here."""
    largest: Array = block.max(axis=1, initial=-np.inf)
    return largest


def index_stats(local: LocalLogits, index: Array) -> VocabParallelStats:
    """Class indices: the pivot is the target, on the process that owns it."""
    shard, coefs, group = local.shard, local.coefs, local.shard.group
    local_index = index - shard.vocab_start
    owns_target = (local_index >= 0) & (local_index < shard.num_local_classes)
    # Logits of the target: 0 but on its owner, so that their sum over the processes is the logit.
    logits_max, target_logit = local.zeros(), local.zeros()

    def find_max(rows: slice, block: Array) -> None:
        owned, columns = owns_target[rows], local_index[rows]
        target_logit[rows][owned] = block[owned, columns[owned]]
        set_at_pivot(block, owned, columns, -np.inf)
        logits_max[rows] = local_max(block)

    local.for_each(find_max)
    logits_max = group.all_reduce(logits_max, "MAX")
    shift = np.where(np.isneginf(logits_max), 0, logits_max)

    sums = local.zeros(2 if coefs.smoothing is None else 3)
    sums[1] = target_logit

    def sum_exp(rows: slice, block: Array) -> None:
        owned, columns = owns_target[rows], local_index[rows]
        if local.smoothing_coefs is not None:
            gaps = np.subtract(shift[rows][:, None], block, out=local.scratch("logit_gaps", rows))
            set_at_pivot(gaps, owned, columns, 0)
            multiply(gaps, local.smoothing_coefs)
            sums[2, rows] = gaps.sum(axis=1)
        set_at_pivot(block, owned, columns, -np.inf)
        sums[0, rows] = exponentials(block, shift[rows]).sum(axis=1)

    local.for_each(sum_exp)
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
    group = local.shard.group
    largest, second = local.zeros(), local.zeros()
    local_pivot = np.zeros(local.count, np.intp)

    def find_largest(rows: slice, block: Array) -> None:
        largest[rows] = local_max(block)
        if block.shape[1]:
            local_pivot[rows] = block.argmax(axis=1)
            block[np.arange(len(block)), local_pivot[rows]] = -np.inf
        second[rows] = local_max(block)

    local.for_each(find_largest)
    pivot_logit = group.all_reduce(largest.copy(), "MAX")
    is_candidate = (largest == pivot_logit) & (local.shard.num_local_classes > 0)
    candidates = np.where(is_candidate, -group.rank, -np.inf).astype(largest.dtype)
    owns_pivot = is_candidate & (group.all_reduce(candidates, "MAX") == -group.rank)
    logits_max = group.all_reduce(np.where(owns_pivot, second, largest), "MAX")
    shift = np.where(np.isneginf(logits_max), 0, logits_max)

    # Exponentials, weighted gaps, and coefficients, each but the pivot's, which comes last.
    sums = local.zeros(4)

    def sum_exp(rows: slice, block: Array) -> None:
        owned, columns = owns_pivot[rows], local_pivot[rows]
        gaps = np.subtract(pivot_logit[rows][:, None], block, out=local.scratch("logit_gaps", rows))
        set_at_pivot(gaps, owned, columns, 0)
        target_coefs = local.target_coefs(rows)
        sums[3, rows][owned] = target_coefs[owned, columns[owned]]
        multiply(gaps, target_coefs)
        sums[1, rows] = gaps.sum(axis=1)
        set_at_pivot(target_coefs, owned, columns, 0)
        sums[2, rows] = target_coefs.sum(axis=1)
        set_at_pivot(block, owned, columns, -np.inf)
        sums[0, rows] = exponentials(block, shift[rows]).sum(axis=1)

    local.for_each(sum_exp)
    sum_rest, weighted_gaps, rest_coef, pivot_coef = group.all_reduce(sums, "SUM")
    rows = pivot_stats(logits_max, pivot_logit, sum_rest)
    losses = with_z_loss(weighted_gaps + (rest_coef + pivot_coef) * rows.loss, rows, local)
    return VocabParallelStats(owns_pivot, local_pivot, shift, pivot_logit, rows, pivot_coef, rest_coef, losses)


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
