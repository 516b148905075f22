"""The adapter: arrays described and handed over, blocks of rows run through the loss."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from unixent.protocol import ArrayInfo, Capabilities, LinearProblem, LossTerms, Problem
from unixent_numpy._layout import Array, Rows, Scratch, for_each_block, rows_per_block
from unixent_numpy._loss import Coefficients, Positions, equals, mixed_block, plain_block, reduce, row_factors
from unixent_numpy._rows import cap


class NumpyBackend:
    """`unixent.Backend` for NumPy arrays, on all cores (or ``UNIXENT_NUM_THREADS`` of them)."""

    name = "numpy"
    version = np.__version__
    capabilities = Capabilities(
        dtypes=frozenset({"float16", "float32", "float64"} | ({"bfloat16"} if find_spec("ml_dtypes") else set())),
        batch_invariant=True,
    )

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def owns(self, array: object) -> bool:
        return isinstance(array, (np.ndarray, np.generic)) and not isinstance(array, np.ma.MaskedArray)

    def describe(self, array: Array) -> ArrayInfo:
        return ArrayInfo(array.shape, array.dtype.name)

    def asarray(self, value: Array, like: Array | None) -> Array:
        return value

    def first_invalid_target(self, target: Array, classes: int, ignore_index: int) -> tuple[int, int] | None:
        target = np.asarray(target)
        if target.size == 0 or (target.min() >= 0 and target.max() < classes):
            return None
        invalid = ((target < 0) | (target >= classes)) & ~equals(target, ignore_index)
        flat = int(invalid.argmax())
        return (flat, int(target.reshape(-1)[flat])) if invalid.reshape(-1)[flat] else None

    def first_nonfinite(self, array: Array) -> int | None:
        bad = ~np.isfinite(np.asarray(array))
        return int(bad.argmax()) if bad.any() else None

    def cross_entropy(self, problem: Problem) -> Array | LossTerms:
        return self._solve(problem, None, ())[0]

    def value_and_grad(
        self, problem: Problem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        return self._solve(problem, grad_output, wrt)

    def linear_cross_entropy(self, problem: LinearProblem) -> Array | LossTerms:
        raise NotImplementedError

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        raise NotImplementedError

    def _solve(self, problem: Problem, grad_output: Array | None, wrt: tuple[str, ...]) -> tuple[Any, tuple[Array, ...]]:
        # Infinities and NaN are part of the semantics, not accidents to warn of.
        with np.errstate(all="ignore"):
            positions = Positions.of(problem)
            factors = row_factors(positions, problem, grad_output) if wrt else None
            source = {"logits": problem.logits, "target": problem.target}
            grads = {name: np.empty_like(source[name], subok=False) for name in wrt}
            losses = _losses(problem, positions, factors, grads)
            shape = problem.logits.shape[: problem.axis] + problem.logits.shape[problem.axis + 1 :]
            return reduce(losses, positions, problem, shape), tuple(grads[name] for name in wrt)


def _losses(problem: Problem, positions: Positions, factors: Array | None, grads: dict[str, Array]) -> Array:
    """The position losses; fills ``grads`` on the way."""
    options, kind, axis = problem.options, np.dtype(problem.accumulation), problem.axis
    logits = Rows(np.asarray(problem.logits), axis)
    probabilities = Rows(np.asarray(problem.target), axis) if positions.index is None else None
    outputs = {name: Rows(grad, axis) for name, grad in grads.items()}
    fixed = Coefficients.of(problem) if probabilities is not None or options.label_smoothing else None
    losses = np.empty(logits.count, kind)
    skipped = (positions.v == 0)
    inplace = outputs["logits"].in_place(kind) if "logits" in outputs else None
    step = rows_per_block(logits.count, logits.classes, kind.itemsize)
    scratch = Scratch(step, logits.classes, kind)

    def work(start: int, stop: int) -> None:
        # NumPy's error state is a thread's own.
        with np.errstate(all="ignore"):
            rows = stop - start
            block = scratch.block("logits", rows) if inplace is None else inplace[start:stop]
            logits.read(start, stop, block)
            slope = None
            if options.softcap is not None:
                slope = scratch.block("slope", rows) if "logits" in outputs else None
                cap(block, options.softcap, slope)
            index = None if positions.index is None else positions.index[start:stop]
            w = None if positions.w is None else positions.w[start:stop]
            coefficient = None if factors is None else factors[start:stop]
            target_grad = None
            if fixed is None:
                assert index is not None
                loss = plain_block(block, index, w, options.z_loss, coefficient)
            else:
                shares = None
                if probabilities is not None:
                    shares = scratch.block("shares", rows)
                    probabilities.read(start, stop, shares)
                    target_grad = scratch.block("target", rows) if "target" in outputs else None
                gaps = scratch.block("gaps", rows)
                loss = mixed_block(block, gaps, index, shares, w, fixed, options.z_loss, coefficient, target_grad)
            if slope is not None:
                block *= slope
            loss = loss * positions.v[start:stop]
            off = skipped[start:stop]
            loss[off] = 0
            bad = None if positions.invalid is None else positions.invalid[start:stop]
            if bad is not None:
                loss[bad] = np.nan
            losses[start:stop] = loss
            for name, grad in (("logits", block), ("target", target_grad)):
                if name in outputs and grad is not None:
                    grad[off] = 0
                    if bad is not None:
                        grad[bad] = np.nan
                    if grad is not block or inplace is None:
                        outputs[name].write(start, stop, grad)

    for_each_block(logits.count, step, work)
    return losses
