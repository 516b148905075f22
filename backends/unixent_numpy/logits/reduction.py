"""From the losses of the positions to the result, and the scale of their derivatives: sums, and what divides them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from unixent.protocol import LossProblem, LossTerms
from unixent.semantics import grad_scale, mean_of, mean_of_large
from unixent.validation import empty_mean
from unixent_numpy.collectives import all_reduce
from unixent_numpy.compat import Array, bfloat16


class Reduction:
    """What becomes of the losses of shape P: sums over the processes that share the positions, and their quotient.

    Args:
        problem: the problem.
        denominators: d, or None for ones.
        positions: P.
    """

    def __init__(self, problem: LossProblem, denominators: Array | None, positions: tuple[int, ...]) -> None:
        self._problem, self._dtype = problem, np.dtype(problem.acc_dtype)
        self._token_group = None if problem.sharding is None else problem.sharding.token_group
        self._empty = 0.0 if problem.options.on_empty == "zero" else math.nan
        self._denominator: Any = None
        if problem.normalizer is not None:
            self._denominator = self._dtype.type(problem.normalizer)
        elif problem.return_terms or problem.options.reduction == "mean":
            ones = self._dtype.type(math.prod(positions))
            self._denominator = self._sum(ones if denominators is None else denominators)

    def _sum(self, values: Any) -> Any:
        """The sum over the positions, of all the processes that share them."""
        local_sum = values.sum()
        return (
            local_sum if self._token_group is None else all_reduce(np.asarray(local_sum), self._token_group, "SUM")[()]
        )

    def reduce(self, losses: Array) -> Any:
        """The finished result: reduced in the accumulation dtype, rounded once."""
        problem, reduction = self._problem, self._problem.options.reduction
        dtype: Any = bfloat16() if problem.result_dtype == "bfloat16" else problem.result_dtype
        if reduction == "none" and not problem.return_terms:
            return losses.astype(dtype, copy=False)
        value = self._sum(losses)
        if problem.return_terms:
            return LossTerms(np.asarray(value, dtype), np.asarray(self._denominator, dtype))
        if reduction == "mean":
            if problem.check_empty and self._denominator == 0:
                raise empty_mean()
            if np.isinf(value) and self._denominator != 0:
                value = mean_of_large(losses, self._denominator, self._sum)
            else:
                value = mean_of(np, value, self._denominator, self._empty, host=True)
        return np.asarray(value, dtype)

    def grad_scale(self, position_weight: Array | None, grad_output: Array | None) -> Array:
        """What the derivative of each position's loss is multiplied by: v * upstream / denominator."""
        scale: Array = np.ones((), self._dtype) if grad_output is None else np.asarray(grad_output).astype(self._dtype)
        if position_weight is not None:
            scale = position_weight * scale
        if self._problem.options.reduction != "mean":
            return scale
        divided: Array = grad_scale(np, scale, self._denominator, self._empty, host=True)
        if position_weight is None or self._denominator != 0:
            return divided
        # Out of range stays NaN where the mean is empty.
        return np.where(np.isnan(position_weight), np.nan, divided)
