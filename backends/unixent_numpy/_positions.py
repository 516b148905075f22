"""Around the rows: the weight of each position before a logit is read, and the reduction after."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from unixent.protocol import LossProblem, LossTerms
from unixent.validation import empty_mean
from unixent_numpy._groups import all_reduce
from unixent_numpy._layout import Array


@dataclass(frozen=True, slots=True)
class Positions:
    """What a loss needs to know of each of N positions before any logit is read.

    ``index`` is safe to gather with: 0 where the target is ignored or invalid. ``v`` is the position weight, ``w`` the
    class weight of the target (None: 1), ``invalid`` marks indices outside [0, C).
    """

    v: Array
    index: Array | None
    w: Array | None
    invalid: Array | None
    denominators: Array

    def __getitem__(self, rows: slice) -> Positions:
        def cut(part: Array | None) -> Array | None:
            return None if part is None else part[rows]

        return Positions(self.v[rows], cut(self.index), cut(self.w), cut(self.invalid), self.denominators[rows])

    @classmethod
    def of(cls, problem: LossProblem, count: int) -> Positions:
        kind = np.dtype(problem.acc_dtype)
        if problem.target_kind == "probability":
            v = np.ones(count, kind) if problem.mask is None else _flat(problem.mask, kind)
            return cls(v, None, None, None, v)
        target = np.asarray(problem.target).reshape(-1)
        v = np.ones(target.size, kind) if problem.mask is None else _flat(problem.mask, kind)
        ignored = equals(target, problem.options.ignore_index)
        outside = (target < 0) | (target >= problem.num_classes)
        invalid = outside & ~ignored
        v = np.where(ignored, 0, v)
        index = np.where(outside, 0, target).astype(np.intp)
        w = None if problem.weight is None else problem.weight.astype(kind)[index]
        denominators = v if w is None else v * np.where(invalid, 1, w)
        return cls(v, index, w, invalid if invalid.any() else None, np.where(ignored, 0, denominators))


def _flat(array: Array, kind: np.dtype[Any]) -> Array:
    flat: Array = np.asarray(array).astype(kind).reshape(-1)
    return flat


def equals(target: Array, value: int) -> Array:
    """``target == value`` without casting ``value`` into a dtype that can't hold it."""
    limits = np.iinfo(target.dtype)
    if limits.min <= value <= limits.max:
        return np.asarray(target == target.dtype.type(value))
    return np.zeros(target.shape, bool)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """The target's coefficients that no position changes: b_c = w_c s / C, and what they sum to without each class."""

    weight: Array | None
    share: float
    base: Array
    total: Any
    without: Array

    @classmethod
    def of(cls, problem: LossProblem) -> Coefficients:
        kind = np.dtype(problem.acc_dtype)
        smoothing = problem.options.label_smoothing
        weight = None if problem.weight is None else problem.weight.astype(kind)
        # Sums of C numbers each: wider than the accumulation dtype, so that total - base does not cancel.
        wide = np.ones(problem.num_classes, np.longdouble) if weight is None else weight.astype(np.longdouble)
        wide *= np.longdouble(smoothing) / problem.num_classes
        total = wide.sum()
        return cls(weight, 1 - smoothing, wide.astype(kind), kind.type(total), (total - wide).astype(kind))


def mean_of(numerator: Any, denominator: Any, problem: LossProblem) -> Any:
    """``numerator / denominator``, and what ``on_empty`` says where that is 0."""
    if denominator == 0 and not np.isnan(numerator):
        if problem.check_empty:
            raise empty_mean()
        return numerator.dtype.type(0 if problem.options.on_empty == "zero" else np.nan)
    return numerator / denominator


def total(values: Array, problem: LossProblem) -> Any:
    """The sum over the positions of all processes."""
    own = values.sum()
    if problem.sharding is None or problem.sharding.token_group is None:
        return own
    return all_reduce(np.asarray(own), problem.sharding.token_group, "SUM")[()]


def denominator_of(positions: Positions, problem: LossProblem) -> Any:
    if problem.normalizer is not None:
        return np.dtype(problem.acc_dtype).type(problem.normalizer)
    return total(positions.denominators, problem)


def reduce(losses: Array, positions: Positions, problem: LossProblem, shape: tuple[int, ...]) -> Any:
    """The finished result: reduced in the accumulation dtype, rounded once."""
    result = result_dtype(problem.result_dtype)
    if problem.return_terms:
        return LossTerms(
            _finish(total(losses, problem), result), _finish(total(positions.denominators, problem), result)
        )
    if problem.options.reduction == "none":
        return losses.reshape(shape).astype(result)
    numerator = total(losses, problem)
    if problem.options.reduction == "sum":
        return _finish(numerator, result)
    return _finish(mean_of(numerator, denominator_of(positions, problem), problem), result)


def _finish(value: Any, dtype: np.dtype[Any]) -> Array:
    return np.asarray(value).astype(dtype)


def result_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of that name; bfloat16 comes with the package ml_dtypes, without which no such array exists."""
    if name == "bfloat16":
        name = import_module("ml_dtypes").bfloat16
    found: np.dtype[Any] = np.dtype(name)
    return found


def row_factors(positions: Positions, problem: LossProblem, grad_output: Array | None) -> Array:
    """What the derivative of each position's loss is multiplied with: v, the upstream gradient, 1 / denominator."""
    kind = np.dtype(problem.acc_dtype)
    upstream = np.ones((), kind) if grad_output is None else np.asarray(grad_output).astype(kind).reshape(-1)
    factors = positions.v * upstream
    if problem.options.reduction != "mean":
        return factors
    denominator = denominator_of(positions, problem)
    if denominator == 0:
        factors.fill(0 if problem.options.on_empty == "zero" else np.nan)
        return factors
    scaled: Array = factors / denominator
    return scaled
