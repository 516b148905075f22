"""Statistics under plain reverse mode: nothing of the size of the logits is kept but the logits themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch.kernel.blocks import blocks, on_huge_pages, rows_per_block
from unixent_torch.logits.autograd import is_transformed
from unixent_torch.positions.rows import ALONG, READING, Columns, StatsSpec, row_gradient, row_stats


def stats_by_blocks(x: Tensor, columns: Columns, spec: StatsSpec) -> dict[str, Tensor]:
    """`row_stats` a block of rows at a time, so that what lies between stays in cache."""
    positions = x.shape[:-1]
    count, rows = positions.numel(), rows_per_block(x)
    along = READING if spec.kernel.readable else ALONG
    if count <= rows:
        return row_stats(x, columns, spec, along)
    flat, start = columns.flattened(count), 0
    parts: list[dict[str, Tensor]] = []
    for (piece,) in blocks((x,), rows):
        stop = start + piece.shape[:-1].numel()
        parts.append(row_stats(piece.reshape(stop - start, -1), flat.rows(slice(start, stop)), spec, along))
        start = stop
    joined = {name: torch.cat([part[name] for part in parts]) for name in spec.outputs}
    return {name: each.view(*positions, *each.shape[1:]) for name, each in joined.items()}


def gradient_by_blocks(x: Tensor, upstream: dict[str, Tensor], columns: Columns, spec: StatsSpec) -> Tensor:
    """`row_gradient` likewise, rounded to the dtype of x."""
    positions = x.shape[:-1]
    count, rows = positions.numel(), rows_per_block(x)
    if count <= rows:
        return row_gradient(x, upstream, columns, spec).to(x.dtype)
    flat, start, grad = columns.flattened(count), 0, on_huge_pages(torch.empty_like(x))
    axes = len(positions)
    above = {name: each.reshape(count, *each.shape[axes:]) for name, each in upstream.items()}
    for piece, out in blocks((x, grad), rows):
        stop = start + piece.shape[:-1].numel()
        here = {name: each[start:stop] for name, each in above.items()}
        block = row_gradient(piece.reshape(stop - start, -1), here, flat.rows(slice(start, stop)), spec)
        out.copy_(block.view(out.shape))
        start = stop
    return grad


class RowStatistics(Function):
    """The outputs asked for, each P or P + (K,) in the accumulation dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Columns, spec: StatsSpec) -> tuple[Tensor, ...]:
        ctx.spec = spec
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *columns)
        stats = stats_by_blocks(x, columns, spec)
        ctx.mark_non_differentiable(*[each for name, each in stats.items() if name not in spec.graded])
        return tuple(stats.values())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        x, *saved = ctx.saved_tensors
        columns, spec = Columns(*saved), ctx.spec
        upstream = spec.upstream(grad_outputs)
        if not upstream:
            return None, None, None
        if torch.is_grad_enabled() or any(map(is_transformed, upstream.values())):
            return row_gradient(x, upstream, columns, spec).to(x.dtype), None, None
        return gradient_by_blocks(x, upstream, columns, spec), None, None
