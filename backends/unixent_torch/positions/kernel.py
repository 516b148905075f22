"""Statistics of rows of logits: the contract, and the one place that chooses what implements it.

    row_statistics(x, columns, spec, upstream=None, out=None, keep=False, kept=None) -> RowResults

    x         logits, P + (C,), any strides
    columns   what there is of the positions besides
    spec      a `StatsSpec`; its outputs may be none
    upstream  gradients of outputs, by name, in the accumulation dtype; those that are not there are 0. None where no
              gradient is asked for
    out       where to put the gradient, of the shape and dtype of x; ``x`` itself may take it
    keep      return what makes a later call for the gradient read the logits but once
    kept      what such a call returned; this one then has no outputs

A row's bits depend neither on how many others there are nor on their values. Implementations, chosen between here:

- `triton`: log-probabilities of the targets alone, on CUDA tensors;
- `native`: the library of `unixent_native`, where it is there, for plain tensors in host memory;
- `unixent_torch.positions.rows`, a block of rows at a time, so that what lies between stays in cache; it serves every
  device and every output, and keeps nothing. Transforms and compilers see it as it is;
- `shards`, where the classes are split over processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unixent_native import has_statistics, load
from unixent_torch.kernel.blocks import blocks, on_huge_pages, rows_per_block
from unixent_torch.positions import native, shards, triton
from unixent_torch.positions.rows import ALONG, READING, Columns, RowResults, StatsSpec, row_gradient, row_stats


def row_statistics(
    x: Tensor,
    columns: Columns,
    spec: StatsSpec,
    upstream: dict[str, Tensor] | None = None,
    out: Tensor | None = None,
    keep: bool = False,
    kept: Tensor | None = None,
) -> RowResults:
    """Implements the contract above."""
    if spec.shard is not None:
        return shards.row_statistics(spec.shard, x, columns, spec, upstream, out, kept)
    library, done = load(), triton.row_statistics(x, columns, spec, upstream, out, keep, kept)
    if done is None and library is not None and has_statistics((*spec.outputs, *(upstream or ())), spec.k):
        done = native.row_statistics(library, x, columns, spec, upstream, out, keep, kept)
    if done is not None:
        return done
    outputs = _stats(x, columns, spec) if spec.outputs else {}
    return RowResults(outputs, None if upstream is None else _gradient(x, upstream, columns, spec, out), None)


def _stats(x: Tensor, columns: Columns, spec: StatsSpec) -> dict[str, Tensor]:
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
    return {name: each.view((*positions, *each.shape[1:])) for name, each in joined.items()}


def _gradient(x: Tensor, upstream: dict[str, Tensor], columns: Columns, spec: StatsSpec, out: Tensor | None) -> Tensor:
    positions = x.shape[:-1]
    count, rows = positions.numel(), rows_per_block(x)
    if count <= rows:
        whole = row_gradient(x, upstream, columns, spec)
        return whole.to(x.dtype) if out is None else out.copy_(whole)
    flat, start, grad = columns.flattened(count), 0, on_huge_pages(torch.empty_like(x)) if out is None else out
    axes = len(positions)
    above = {name: each.reshape(count, *each.shape[axes:]) for name, each in upstream.items()}
    for piece, place in blocks((x, grad), rows):
        stop = start + piece.shape[:-1].numel()
        here = {name: each[start:stop] for name, each in above.items()}
        block = row_gradient(piece.reshape(stop - start, -1), here, flat.rows(slice(start, stop)), spec)
        place.copy_(block.view(place.shape))
        start = stop
    return grad
