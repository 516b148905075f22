"""The fused linear form: a chunk of positions at a time through product, loss and the two products of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from unixent.chunking import linear_chunk
from unixent.protocol import LinearProblem
from unixent_numpy.collectives import all_reduce
from unixent_numpy.compat import Array
from unixent_numpy.kernel import RowLosses
from unixent_numpy.logits.problem import Operands
from unixent_numpy.logits.reduction import Reduction

# Classes whose part of the classifier (its widened copy, its gradient's increment) exists at a time.
TILE = 4096


def solve_linear(
    problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...], row_losses: RowLosses
) -> tuple[Any, tuple[Array, ...]]:
    """The reduced loss, and its gradient for each of ``wrt``, by passes over chunks of the logits."""
    with np.errstate(all="ignore"):
        positions, width = problem.hidden.shape[:-1], problem.hidden.shape[-1]
        count, num_classes = math.prod(positions), len(problem.classifier)
        problem = with_fast_classifier(problem)
        target = np.asarray(problem.target)
        is_index = problem.target_kind == "index"
        operands = Operands.of(problem, target.reshape(count) if is_index else target.reshape(count, num_classes))
        dtype = operands.spec.acc_dtype
        reduction = Reduction(problem, operands.denominators, positions)
        grad_scale = None
        if wrt:
            scale = reduction.grad_scale(
                operands.position_weight, None if grad_output is None else grad_output.reshape(-1)
            )
            grad_scale = np.broadcast_to(scale, (count,))
        group = None if problem.sharding is None else problem.sharding.model_group
        grads: dict[str, Array] = {}
        if "hidden" in wrt:
            # Each process of a model group adds what its classes give.
            grads["hidden"] = np.empty((count, width), problem.hidden.dtype if group is None else dtype)
        if "target" in wrt:
            grads["target"] = np.empty((count, num_classes), target.dtype)
        # Sums over positions: rounded to their own dtype once, at the end.
        for name in ("classifier", "bias"):
            if name in wrt:
                grads[name] = np.zeros(getattr(problem, name).shape, dtype)
        losses = np.empty(count, dtype)
        row_wrt = ("logits", *(("target",) if "target" in grads else ())) if grads else ()
        for rows, logits in linear_chunks(problem, operands.position_weight, dtype, grads):
            losses[rows], _ = row_losses(
                logits,
                operands.target[rows],
                operands.weight,
                None if operands.position_weight is None else operands.position_weight[rows],
                None if grad_scale is None else grad_scale[rows],
                operands.spec,
                row_wrt,
                tuple([logits if name == "logits" else grads["target"][rows] for name in row_wrt]),
            )
        if "hidden" in grads:
            grads["hidden"] = all_reduce(grads["hidden"], group, "SUM")
        results = [
            grads[name].astype(getattr(problem, name).dtype, copy=False).reshape(getattr(problem, name).shape)
            for name in wrt
        ]
        return reduction.reduce(losses.reshape(positions)), tuple(results)


def with_fast_classifier(problem: LinearProblem) -> LinearProblem:
    """Older releases multiply memory of negative strides without BLAS: slowly, and with other bits."""
    if min(problem.classifier.strides) >= 0:
        return problem
    return replace(problem, classifier=problem.classifier.copy())


def linear_chunks(
    problem: LinearProblem, position_weight: Array | None, dtype: np.dtype[Any], grads: dict[str, Array]
) -> Iterator[tuple[slice, Array]]:
    """Chunks of the logits, one at a time. Where ``grads`` is to be filled, each is overwritten with its gradient.

    Args:
        problem: the problem; hidden states of weight 0 are taken for 0.
        position_weight: v, N, or None for ones.
        dtype: the accumulation dtype.
        grads: arrays for "hidden" [N, D], and, to be added to, "classifier" and "bias", of those that are asked for.

    Yields:
        the rows of the chunk, and their logits.
    """
    width, num_classes = problem.hidden.shape[-1], len(problem.classifier)
    count = math.prod(problem.hidden.shape[:-1])
    hidden = problem.hidden.reshape(count, width)
    # The processes of a model group reduce over each chunk together, however many classes each of them holds.
    max_local_classes = num_classes if problem.sharding is None else max(problem.sharding.classes_per_rank)
    chunk = linear_chunk(count, max(1, max_local_classes), width, dtype.itemsize, problem.chunk)
    buffer = np.empty((chunk, num_classes), dtype)
    tiles = [slice(first, min(first + TILE, num_classes)) for first in range(0, num_classes, TILE)]
    # Memory that is fresh for every product would cost its pages each time.
    addend = np.empty((min(TILE, num_classes), width) if "classifier" in grads else 0, dtype)
    for start in range(0, count, chunk):
        rows = slice(start, min(start + chunk, count))
        inactive = None if position_weight is None else position_weight[rows] == 0
        states = hidden[rows].astype(dtype)
        if inactive is not None:
            # 0 times a NaN of an inactive position would reach the classifier's gradient.
            states[inactive] = 0
        logits = buffer[: len(states)]
        for tile in tiles:
            np.matmul(states, problem.classifier[tile].T.astype(dtype, copy=False), out=logits[:, tile])
        if problem.bias is not None:
            logits += problem.bias
        yield rows, logits
        if "hidden" in grads:
            grads["hidden"][rows] = _times_classifier(logits, problem.classifier, tiles, dtype)
            if inactive is not None:
                # 0 times a NaN of the classifier, again.
                grads["hidden"][rows][inactive] = 0
        for tile in tiles if "classifier" in grads else ():
            grads["classifier"][tile] += np.matmul(logits[:, tile].T, states, out=addend[: tile.stop - tile.start])
        if "bias" in grads:
            grads["bias"] += logits.sum(axis=0)


def _times_classifier(gradient: Array, classifier: Array, tiles: list[slice], dtype: np.dtype[Any]) -> Array:
    """``gradient @ classifier``, accumulated in ``dtype`` over tiles of a classifier of any dtype."""
    if classifier.dtype == dtype:
        product: Array = gradient @ classifier
        return product
    total = np.zeros((len(gradient), classifier.shape[1]), dtype)
    for tile in tiles:
        total += gradient[:, tile] @ classifier[tile].astype(dtype)
    return total
