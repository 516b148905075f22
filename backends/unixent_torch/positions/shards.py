"""Statistics of rows whose classes are split: blocks that all processes of the model groups work together.

A block is reduced as `unixent.share_statistics` says. What is kept of its rows is their scalars: with them the gradient
needs no communication. Second derivatives and transforms go through `unixent_torch.positions.rows` as a composition,
whose sums over processes have derivatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.row_statistics import RowScalars, solve, solve_again
from unixent_torch.collectives import LocalShard
from unixent_torch.kernel.blocks import rows_per_block
from unixent_torch.positions.rows import (
    ALONG,
    READING,
    Columns,
    RowResults,
    StatsSpec,
    gradient_of,
    prepared,
    values_of,
)

# A block is reduced over the processes by itself: the larger, the less their latency counts.
_BLOCKS = 4


def row_statistics(
    shard: LocalShard,
    x: Tensor,
    columns: Columns,
    spec: StatsSpec,
    upstream: dict[str, Tensor] | None,
    out: Tensor | None,
    kept: Tensor | None,
) -> RowResults:
    """Implements the contract of `unixent_torch.positions.kernel` for the local classes, of which there may be none."""
    along, acc_dtype = spec.over(READING if spec.kernel.readable else ALONG), spec.kernel.acc_dtype
    positions, num_local_classes = x.shape[:-1], x.shape[-1]
    count, step = positions.numel(), _BLOCKS * rows_per_block(x, shard.max_local_classes)
    flat, flat_columns = x.reshape(count, num_local_classes), columns.flattened(count)
    above = {name: each.reshape(count, *each.shape[len(positions) :]) for name, each in (upstream or {}).items()}
    grad: Tensor | None = None
    if upstream is not None:
        grad = x.new_empty(x.shape) if out is None else out
    parts: list[dict[str, Tensor]] = []
    scalars: list[Tensor] = []
    for start in range(0, max(1, count), step):  # at least one block, for the dtypes
        rows = slice(start, min(start + step, count))
        given, of_rows = flat[rows].to(acc_dtype), flat_columns.rows(rows)
        logits, inactive = prepared(given, of_rows, spec)
        if kept is None:
            solved = solve(along, logits)
            scalars.append(torch.cat([each.double() for each in solved.scalars.columns], -1).t())
        else:
            pivot, *others = kept[:, rows].unsqueeze(-1)
            known = RowScalars.of((pivot.long(), *[each.to(acc_dtype) for each in others]))
            solved = solve_again(along, logits, known)
        parts.append(values_of(solved, inactive, of_rows, spec, along))
        if grad is not None:
            here = {name: each[rows] for name, each in above.items()}
            grad.view(count, num_local_classes)[rows] = gradient_of(solved, given, inactive, here, of_rows, spec, along)
    joined = {name: torch.cat([part[name] for part in parts]) for name in spec.outputs}
    outputs = {name: each.view((*positions, *each.shape[1:])) for name, each in joined.items()}
    return RowResults(outputs, grad, torch.cat(scalars, 1) if kept is None else None)
