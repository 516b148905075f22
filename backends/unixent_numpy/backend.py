"""The adapter: arrays described and handed over, problems sent their way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, cast

import numpy as np

from unixent.classes import pad_gradients, take_share
from unixent.options import ParallelConfig
from unixent.protocol import (
    ArrayInfo,
    Capabilities,
    Device,
    LinearProblem,
    LossProblem,
    LossTerms,
    PositionStats,
    Problem,
    StatsProblem,
)
from unixent_native import kernel_name
from unixent_numpy.collectives import group_of
from unixent_numpy.compat import Array
from unixent_numpy.kernel import row_losses
from unixent_numpy.kernel.blocks import num_threads
from unixent_numpy.linear import solve_linear
from unixent_numpy.logits.problem import solve_logits
from unixent_numpy.positions.rows import ALONG
from unixent_numpy.positions.solve import WHOLE_ROWS, solve_stats
from unixent_numpy.positions.sparse import solve_sparse
from unixent_numpy.vocab_parallel.composed import vocab_parallel_row_losses
from unixent_numpy.vocab_parallel.positions import vocab_parallel_rows


class NumpyBackend:
    """`unixent.Backend` for NumPy arrays, on all cores (or ``UNIXENT_NUM_THREADS`` of them)."""

    name = "numpy"
    version = np.__version__
    capabilities = Capabilities(
        dtypes=frozenset({"float16", "float32", "float64"} | ({"bfloat16"} if find_spec("ml_dtypes") else set())),
        targets=frozenset({"index", "probability", "sparse"}),
        linear=True,
        position_stats=True,
        parallel_position_stats=True,
        parallel_targets=frozenset({"index", "probability", "sparse"}),
        parallel=True,
    )
    along = ALONG

    def devices(self) -> tuple[Device, ...]:
        return (Device("cpu", kernel_name("NumPy"), batch_invariant=True),)

    def owns(self, array: object) -> bool:
        return isinstance(array, (np.ndarray, np.generic)) and not isinstance(array, np.ma.MaskedArray)

    def describe(self, arrays: tuple[Array, ...]) -> tuple[ArrayInfo, ...]:
        num_threads()  # refused here if it is no number, where a process's refusal reaches the others
        return tuple([ArrayInfo(array.shape, array.dtype.name) for array in arrays])

    def asarray(self, value: Array, like: Array | None) -> Array:
        return value

    def broadcast_to(self, array: Array, shape: tuple[int, ...]) -> Array:
        return np.broadcast_to(array, shape)

    def take_classes(self, array: Array, axis: int, num_classes: int) -> Array:
        return array[(slice(None),) * axis + (slice(num_classes),)]

    def pad_classes(self, array: Array, axis: int, num_classes: int) -> Array:
        if array.shape[axis] == num_classes:
            return array
        padded = np.zeros((*array.shape[:axis], num_classes, *array.shape[axis + 1 :]), array.dtype)
        self.take_classes(padded, axis, array.shape[axis])[...] = array
        return padded

    def first_invalid_target(self, target: Array, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        target = np.asarray(target)
        if target.size == 0 or (target.min() >= 0 and target.max() < num_classes):
            return None
        limits = np.iinfo(target.dtype)
        invalid = (target < 0) | (target >= num_classes)
        if limits.min <= ignore_index <= limits.max:
            invalid &= target != ignore_index
        flat = int(invalid.argmax())
        return (flat, int(target.reshape(-1)[flat])) if invalid.reshape(-1)[flat] else None

    def first_nonfinite(self, array: Array) -> int | None:
        bad = ~np.isfinite(np.asarray(array))
        return int(bad.argmax()) if bad.any() else None

    def cross_entropy(self, problem: Problem) -> Array | LossTerms:
        loss: Array | LossTerms
        loss, _ = self._solve(solve_logits, problem, None, ())
        return loss

    def value_and_grad(
        self, problem: Problem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        return self._solve(solve_logits, problem, grad_output, wrt)

    def linear_cross_entropy(self, problem: LinearProblem) -> Array | LossTerms:
        loss: Array | LossTerms
        loss, _ = self._solve(solve_linear, problem, None, ())
        return loss

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        return self._solve(solve_linear, problem, grad_output, wrt)

    def position_stats(
        self, problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
    ) -> tuple[PositionStats, tuple[Array, ...]]:
        call = problem.call
        sharding = call.sharding
        if sharding is None or sharding.model_group is None:
            return solve_stats(problem, grad_output, wrt)
        rank = group_of(sharding.model_group).rank
        share = take_share(self, call, rank)
        assert share.sharding is not None
        problem = replace(problem, call=share)
        stats, grads = solve_stats(problem, grad_output, wrt, vocab_parallel_rows(share.sharding))
        return stats, pad_gradients(self, call, wrt, grads, sharding.classes_per_rank[rank])

    def _solve(
        self, solve: Callable[..., Any], problem: LossProblem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Any, tuple[Array, ...]]:
        """The loss and its gradients: over all classes, or over those that exist of this process's share."""
        sharding, normalizer = problem.sharding, problem.normalizer
        if normalizer is not None and float(normalizer) and not 2.0**-64 <= float(normalizer) <= 2.0**64:
            # In float32 it, its reciprocal or what it divides may round to 0 or infinity.
            problem = replace(problem, acc_dtype="float64")
        is_sparse = problem.target_kind == "sparse"
        if is_sparse:
            solve = cast("Callable[..., Any]", solve_sparse)
        if sharding is None or sharding.model_group is None:
            result: tuple[Any, tuple[Array, ...]]
            result = solve(problem, grad_output, wrt, WHOLE_ROWS if is_sparse else row_losses)
            return result
        rank = group_of(sharding.model_group).rank
        share = take_share(self, problem, rank)
        assert share.sharding is not None
        shared = vocab_parallel_rows if is_sparse else vocab_parallel_row_losses
        loss, grads = solve(share, grad_output, wrt, shared(share.sharding))
        return loss, pad_gradients(self, problem, wrt, grads, sharding.classes_per_rank[rank])

    def to_numpy(self, array: Array) -> Array:
        return array

    def group_size(self, group: Any) -> int:
        return group_of(group).size

    def is_global(self, array: object, config: ParallelConfig) -> bool:
        return False

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        return group_of(group).all_gather(row)

    def is_single_program(self) -> bool:
        return False
