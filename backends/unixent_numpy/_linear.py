"""The fused linear form: a chunk of positions at a time through product, loss and the two products of the gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent.plan import linear_chunk
from unixent.protocol import LinearProblem
from unixent_numpy._layout import Array, Rows, Scratch, for_each_block, rows_per_block
from unixent_numpy._loss import BlockLoss
from unixent_numpy._positions import Positions, reduce, row_factors

# Classes whose share of the classifier (its widened copy, its gradient's increment) exists at a time.
TILE = 4096


def solve_linear(
    problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...]
) -> tuple[Any, tuple[Array, ...]]:
    """The loss and its gradients for each of ``wrt``."""
    with np.errstate(all="ignore"):
        kind = np.dtype(problem.accumulation)
        positions = Positions.of(problem)
        factors = row_factors(positions, problem, grad_output) if wrt else None
        shape = problem.hidden.shape[:-1]
        hidden = problem.hidden.reshape(len(positions.v), problem.hidden.shape[-1])
        grads: dict[str, Array] = {}
        if "hidden" in wrt:
            grads["hidden"] = np.empty(hidden.shape, hidden.dtype)
        if "target" in wrt:
            grads["target"] = np.empty_like(problem.target, subok=False)
        # Sums over positions: rounded to their own dtype once, at the end.
        for name in ("classifier", "bias"):
            if name in wrt:
                grads[name] = np.zeros(getattr(problem, name).shape, kind)
        losses = _losses(problem, positions, factors, hidden, grads)
        results = {name: grad.astype(getattr(problem, name).dtype, copy=False) for name, grad in grads.items()}
        if "hidden" in results:
            results["hidden"] = results["hidden"].reshape(problem.hidden.shape)
        return reduce(losses, positions, problem, shape), tuple(results[name] for name in wrt)


def _losses(
    problem: LinearProblem, positions: Positions, factors: Array | None, hidden: Array, grads: dict[str, Array]
) -> Array:
    """The positions' losses; fills ``grads`` on the way."""
    kind, classes, count = np.dtype(problem.accumulation), problem.classes, len(hidden)
    chunk = linear_chunk(count, classes, kind.itemsize, problem.chunk)
    step = rows_per_block(chunk, classes, kind.itemsize)
    probabilities = Rows(problem.target, -1) if positions.index is None else None
    target_grad = Rows(grads["target"], -1) if "target" in grads else None
    loss = BlockLoss(problem, positions, factors, probabilities, target_grad, Scratch(step, classes, kind))
    buffer = np.empty((chunk, classes), kind)
    off = positions.v == 0
    tiles = [slice(first, min(first + TILE, classes)) for first in range(0, classes, TILE)]
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        states = hidden[start:stop].astype(kind)
        # 0 times a NaN in a switched-off position would reach the classifier's gradient.
        states[off[start:stop]] = 0
        logits = buffer[: stop - start]
        for tile in tiles:
            np.matmul(states, problem.classifier[tile].T.astype(kind, copy=False), out=logits[:, tile])
        if problem.bias is not None:
            logits += problem.bias
        for_each_block(stop - start, step, lambda a, b: loss(start + a, start + b, logits[a:b]))  # noqa: B023
        if "hidden" in grads:
            grads["hidden"][start:stop] = _product(logits, problem.classifier, tiles, kind)
            # 0 times a NaN in the classifier, again.
            grads["hidden"][start:stop][off[start:stop]] = 0
        for tile in tiles if "classifier" in grads else ():
            grads["classifier"][tile] += logits[:, tile].T @ states
        if "bias" in grads:
            grads["bias"] += logits.sum(axis=0)
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
