"""The adapter: arrays described and handed over, blocks of rows run through the loss."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import numpy as np

from unixent.options import ParallelConfig
from unixent.protocol import ArrayInfo, Capabilities, LinearProblem, LossTerms, Problem
from unixent_numpy._groups import group_of
from unixent_numpy._layout import Array, Rows, Scratch, for_each_block, rows_per_block
from unixent_numpy._linear import solve_linear
from unixent_numpy._loss import BlockLoss
from unixent_numpy._positions import Positions, equals, reduce, row_factors
from unixent_numpy._split import split_losses


class NumpyBackend:
    """`unixent.Backend` for NumPy arrays, on all cores (or ``UNIXENT_NUM_THREADS`` of them)."""

    name = "numpy"
    version = np.__version__
    capabilities = Capabilities(
        dtypes=frozenset({"float16", "float32", "float64"} | ({"bfloat16"} if find_spec("ml_dtypes") else set())),
        linear=True,
        parallel=True,
        batch_invariant=True,
    )

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def owns(self, array: object) -> bool:
        return isinstance(array, (np.ndarray, np.generic)) and not isinstance(array, np.ma.MaskedArray)

    def describe(self, arrays: tuple[Array, ...]) -> tuple[ArrayInfo, ...]:
        return tuple([ArrayInfo(array.shape, array.dtype.name) for array in arrays])

    def asarray(self, value: Array, like: Array | None) -> Array:
        return value

    def first_invalid_target(self, target: Array, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        target = np.asarray(target)
        if target.size == 0 or (target.min() >= 0 and target.max() < num_classes):
            return None
        invalid = ((target < 0) | (target >= num_classes)) & ~equals(target, ignore_index)
        flat = int(invalid.argmax())
        return (flat, int(target.reshape(-1)[flat])) if invalid.reshape(-1)[flat] else None

    def first_nonfinite(self, array: Array) -> int | None:
        bad = ~np.isfinite(np.asarray(array))
        return int(bad.argmax()) if bad.any() else None

    def cross_entropy(self, problem: Problem) -> Array | LossTerms:
        loss: Array | LossTerms = self._solve(problem, None, ())[0]
        return loss

    def value_and_grad(
        self, problem: Problem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        return self._solve(problem, grad_output, wrt)

    def linear_cross_entropy(self, problem: LinearProblem) -> Array | LossTerms:
        loss: Array | LossTerms = solve_linear(problem, None, ())[0]
        return loss

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        return solve_linear(problem, grad_output, wrt)

    def group_size(self, group: Any) -> int:
        return group_of(group).size

    def is_global(self, array: object, config: ParallelConfig) -> bool:
        return False

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        return group_of(group).all_gather(row)

    def is_single_program(self) -> bool:
        return False

    def _solve(
        self, problem: Problem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Any, tuple[Array, ...]]:
        with np.errstate(all="ignore"):
            shape = problem.logits.shape[: problem.axis] + problem.logits.shape[problem.axis + 1 :]
            positions = Positions.of(problem, math.prod(shape))
            factors = row_factors(positions, problem, grad_output) if wrt else None
            source = {"logits": problem.logits, "target": problem.target}
            grads = {name: np.empty_like(source[name], subok=False) for name in wrt}
            losses = _losses(problem, positions, factors, grads)
            return reduce(losses, positions, problem, shape), tuple(grads[name] for name in wrt)


def _losses(problem: Problem, positions: Positions, factors: Array | None, grads: dict[str, Array]) -> Array:
    """The positions' losses; fills ``grads`` on the way."""
    kind, axis = np.dtype(problem.acc_dtype), problem.axis
    logits = Rows(np.asarray(problem.logits), axis)
    probabilities = Rows(np.asarray(problem.target), axis) if positions.index is None else None
    outputs = {name: Rows(grad, axis) for name, grad in grads.items()}
    if problem.sharding is not None and problem.sharding.model_group is not None:
        return split_losses(
            problem, positions, factors, logits, probabilities, outputs.get("logits"), outputs.get("target")
        )
    gradient = outputs.get("logits")
    inplace = None if gradient is None else gradient.in_place(kind)
    step = rows_per_block(logits.count, logits.classes, kind.itemsize)
    scratch = Scratch(step, logits.classes, kind)
    loss = BlockLoss(problem, positions, factors, probabilities, outputs.get("target"), scratch)

    def work(start: int, stop: int) -> None:
        block = scratch.block("logits", stop - start) if inplace is None else inplace[start:stop]
        logits.read(start, stop, block)
        loss(start, stop, block)
        if gradient is not None and inplace is None:
            gradient.write(start, stop, block)

    for_each_block(logits.count, step, work)
    return loss.losses
