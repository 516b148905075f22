"""Statistics of positions whose classes are split: how a process works its share of a block of rows."""

from __future__ import annotations

import numpy as np

from unixent.protocol import Sharding
from unixent.share_statistics import Processes, along_shares
from unixent_numpy.collectives import Group, group_of
from unixent_numpy.compat import Array
from unixent_numpy.kernel.blocks import BLOCK_BYTES
from unixent_numpy.positions.rows import ALONG
from unixent_numpy.positions.solve import RowPass
from unixent_numpy.vocab_parallel.composed import vocab_parallel_row_losses

# A block is reduced over the processes by itself: the larger, the less their latency counts.
_SHARED_BYTES = 4 * BLOCK_BYTES


def vocab_parallel_rows(sharding: Sharding) -> RowPass:
    """The pass over the rows of this process's classes, in blocks as long as those of the others."""
    group = group_of(sharding.model_group)
    num_local_classes, num_classes = sharding.classes_per_rank[group.rank], sharding.num_classes
    vocab_start = sharding.vocab_start(group.rank) if num_local_classes else num_classes
    processes = Processes(
        vocab_start,
        num_classes,
        sum=lambda values: _reduce(group, values, "SUM"),
        max=lambda values: _reduce(group, values, "MAX"),
        gather=lambda values: _gather(group, values),
    )
    rows = max(1, _SHARED_BYTES // (8 * max(sharding.classes_per_rank)))
    return RowPass(along_shares(ALONG, processes), vocab_parallel_row_losses(sharding), group, rows)


def _reduce(group: Group, values: Array, operation: str) -> Array:
    if values.dtype.kind == "f":
        return group.all_reduce(values.copy(), operation)
    return group.all_reduce(values.astype(np.float64), operation).astype(np.int64)  # exact up to 2^53


def _gather(group: Group, values: Array) -> Array:
    """Those of all processes: a sum over places of which each process fills its own."""
    places = np.zeros((*values.shape[:-1], group.size, values.shape[-1]), values.dtype)
    places[..., group.rank, :] = values
    return _reduce(group, places, "SUM").reshape(*values.shape[:-1], -1)
