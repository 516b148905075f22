"""Rows in chunks of equal size: the blocks of a scan."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from unixent.chunking import linear_chunk
from unixent_jax.kernel import KernelSpec
from unixent_jax.linear.problem import LinearRows, LinearSpec
from unixent_jax.linear.products import product
from unixent_jax.logits.autograd import row_losses

# Rows of a chunk where their number is unknown: what is missing to a whole chunk is filled up.
_ROWS_IF_UNKNOWN = 256


class Chunk(NamedTuple):
    """The rows of a chunk."""

    hidden: Array
    target: Array
    position_weight: Array
    ids: Array | None
    half_hidden: Array | None


def split_rows(spec: LinearSpec, rows: LinearRows) -> Chunk:
    """The rows in chunks of equal size; what the last one lacks is filled with inactive rows."""
    count, width = rows.hidden.shape
    is_static = isinstance(count, int)  # not so for a symbolic dimension of `jax.export`
    # The exponentials lie beside the logits that they are of: a third fewer rows than where there is one array only.
    max_rows, classes = count if is_static else spec.chunk or _ROWS_IF_UNKNOWN, rows.classifier.shape[0] * 3 // 2
    size = linear_chunk(max_rows, classes, width, rows.hidden.dtype.itemsize, spec.chunk)
    num_chunks = -(-count // size)
    if is_static:
        size = max(1, -(-count // max(1, num_chunks)))

    def split(array: Array | None) -> Any:
        if array is None:
            return None
        padded = jnp.pad(array, [(0, num_chunks * size - count), *[(0, 0)] * (array.ndim - 1)])
        return padded.reshape(num_chunks, size, *array.shape[1:])

    return Chunk(*map(split, (rows.hidden, rows.target, rows.position_weight, rows.ids, rows.half_hidden)))


def join_rows(chunks: Array, rows: LinearRows) -> Array:
    """What a scan gave of each chunk's rows, as one array without the filling."""
    num_chunks, size, *row = chunks.shape
    return chunks.reshape(num_chunks * size, *row)[: rows.hidden.shape[0]]


def chunk_logits(rows: LinearRows, chunk: Chunk) -> Array:
    half = None if rows.half_classifier is None else rows.half_classifier.T
    logits = product(chunk.hidden, rows.classifier.T, chunk.half_hidden, half)
    return logits if rows.bias is None else logits + rows.bias[None]


def chunk_losses(spec: KernelSpec, rows: LinearRows, chunk: Chunk, logits: Array, target: Array) -> Array:
    """The losses of a chunk, by its logits and target."""
    return row_losses(spec, logits, target, rows.weight, chunk.position_weight)
