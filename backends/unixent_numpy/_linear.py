"""The fused linear form: a chunk of positions at a time through product, loss and the two products of the gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unixent.chunking import linear_chunk
from unixent.protocol import LinearProblem
from unixent_numpy._groups import all_reduce
from unixent_numpy._layout import Array, Rows, Scratch, for_each_block, rows_per_block
from unixent_numpy._loss import BlockLoss
from unixent_numpy._positions import Positions, reduce, row_factors
from unixent_numpy._split import split_losses

# Classes whose share of the classifier (its widened copy, its gradient's increment) exists at a time.
TILE = 4096


def solve_linear(
    problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...]
) -> tuple[Any, tuple[Array, ...]]:
    """The loss and its gradients for each of ``wrt``."""
    with np.errstate(all="ignore"):
        kind = np.dtype(problem.acc_dtype)
        positions = Positions.of(problem, math.prod(problem.hidden.shape[:-1]))
        factors = row_factors(positions, problem, grad_output) if wrt else None
        shape = problem.hidden.shape[:-1]
        hidden = problem.hidden.reshape(len(positions.v), problem.hidden.shape[-1])
        grads: dict[str, Array] = {}
        group = None if problem.sharding is None else problem.sharding.model_group
        if "hidden" in wrt:
            # Each process of a model group adds what its classes give.
            grads["hidden"] = np.empty(hidden.shape, hidden.dtype if group is None else kind)
        if "target" in wrt:
            grads["target"] = np.empty(problem.target.shape, problem.target.dtype)
        # Sums over positions: rounded to their own dtype once, at the end.
        for name in ("classifier", "bias"):
            if name in wrt:
                grads[name] = np.zeros(getattr(problem, name).shape, kind)
        losses = _losses(problem, positions, factors, hidden, grads)
        if "hidden" in grads:
            grads["hidden"] = all_reduce(grads["hidden"], group, "SUM")
        results = {name: grad.astype(getattr(problem, name).dtype, copy=False) for name, grad in grads.items()}
        if "hidden" in results:
            results["hidden"] = results["hidden"].reshape(problem.hidden.shape)
        return reduce(losses, positions, problem, shape), tuple(results[name] for name in wrt)


def _losses(
    problem: LinearProblem, positions: Positions, factors: Array | None, hidden: Array, grads: dict[str, Array]
) -> Array:
    """The positions' losses; fills ``grads`` on the way."""
    kind, classes, count = np.dtype(problem.acc_dtype), len(problem.classifier), len(hidden)
    # The processes of a model group reduce over each chunk together, however many classes each of them holds.
    most = classes if problem.sharding is None else max(problem.sharding.classes_per_rank)
    chunk = linear_chunk(count, max(1, most), hidden.shape[-1], kind.itemsize, problem.chunk)
    losses = np.empty(count, kind)
    buffer = np.empty((chunk, classes), kind)
    targets = problem.target.reshape(count, classes) if positions.index is None else None
    target_grads = grads["target"].reshape(count, classes) if "target" in grads else None
    tiles = [slice(first, min(first + TILE, classes)) for first in range(0, classes, TILE)]
    # Memory that is fresh for every product would cost its pages each time.
    addend = np.empty((min(TILE, classes), hidden.shape[1]) if "classifier" in grads else 0, kind)
    for start in range(0, count, chunk):
        rows = slice(start, min(start + chunk, count))
        part = positions[rows]
        states = hidden[rows].astype(kind)
        # 0 times a NaN in a switched-off position would reach the classifier's gradient.
        states[part.v == 0] = 0
        logits = buffer[: len(states)]
        for tile in tiles:
            np.matmul(states, problem.classifier[tile].T.astype(kind, copy=False), out=logits[:, tile])
        if problem.bias is not None:
            logits += problem.bias
        losses[rows] = _chunk(
            problem,
            part,
            None if factors is None else factors[rows],
            logits,
            None if targets is None else Rows(targets[rows], -1),
            None if target_grads is None else Rows(target_grads[rows], -1),
        )
        if "hidden" in grads:
            grads["hidden"][rows] = _product(logits, problem.classifier, tiles, kind)
            # 0 times a NaN in the classifier, again.
            grads["hidden"][rows][part.v == 0] = 0
        for tile in tiles if "classifier" in grads else ():
            grads["classifier"][tile] += np.matmul(logits[:, tile].T, states, out=addend[: tile.stop - tile.start])
        if "bias" in grads:
            grads["bias"] += logits.sum(axis=0)
    return losses


def _chunk(
    problem: LinearProblem,
    positions: Positions,
    factors: Array | None,
    logits: Array,
    probabilities: Rows | None,
    target_grad: Rows | None,
) -> Array:
    """The losses of one chunk, whose ``logits`` become their gradient."""
    if problem.sharding is not None and problem.sharding.model_group is not None:
        rows = Rows(logits, -1)
        return split_losses(problem, positions, factors, rows, probabilities, rows, target_grad)
    step = rows_per_block(len(logits), problem.num_classes, logits.itemsize)
    scratch = Scratch(step, problem.num_classes, logits.dtype)
    loss = BlockLoss(problem, positions, factors, probabilities, target_grad, scratch)
    for_each_block(len(logits), step, lambda start, stop: loss(start, stop, logits[start:stop]))
    return loss.losses


def _product(gradient: Array, classifier: Array, tiles: list[slice], kind: np.dtype[Any]) -> Array:
    """``gradient @ classifier``, accumulated in ``kind`` over tiles of a classifier of any dtype."""
    if classifier.dtype == kind:
        whole: Array = gradient @ classifier
        return whole
    total = np.zeros((len(gradient), classifier.shape[1]), kind)
    for tile in tiles:
        total += gradient[:, tile] @ classifier[tile].astype(kind)
    return total
