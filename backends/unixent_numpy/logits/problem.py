"""The loss of logits: from a problem to the operands of the pass over them, and from its losses to the result."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unixent import semantics
from unixent.protocol import LossProblem, Problem
from unixent_numpy.compat import Array
from unixent_numpy.kernel import KernelSpec, RowLosses
from unixent_numpy.logits.reduction import Reduction


class Operands(NamedTuple):
    """What a logits-level and a fused linear problem have in common, as the pass over the logits takes it.

    Attributes:
        target: class indices that are safe to gather with, or probabilities.
        weight: class weights in the accumulation dtype, or None.
        position_weight: v, NaN where the target is out of range; None for ones.
        denominators: d, None for ones.
        spec: the static options.
    """

    target: Array
    weight: Array | None
    position_weight: Array | None
    denominators: Array | None
    spec: KernelSpec

    @classmethod
    def of(cls, problem: LossProblem, target: Array) -> Operands:
        """The operands of ``problem``, whose target is given with its classes last."""
        options, dtype = problem.options, np.dtype(problem.acc_dtype)
        spec = KernelSpec(dtype, options.label_smoothing, options.z_loss, problem.transform)
        weight = None if problem.weight is None else problem.weight.astype(dtype, copy=False)
        is_index = problem.target_kind == "index"
        mask = None
        if problem.mask is not None:
            mask = np.asarray(problem.mask).astype(dtype).reshape(target.shape if is_index else target.shape[:-1])
        if not is_index:
            return cls(target, weight, mask, mask, spec)
        index, position_weight, out_of_range = target, mask, None
        if not problem.all_targets_valid:
            ones = np.ones(target.shape, dtype)
            index, position_weight, out_of_range = semantics.index_positions(
                np, target, mask, ones, problem.num_classes, options.ignore_index
            )
        index = index.astype(np.intp, copy=False)
        denominators = position_weight
        if weight is not None:
            denominators = semantics.denominators(np, position_weight, weight[index], out_of_range)
        if out_of_range is not None and out_of_range.any():
            position_weight = np.where(out_of_range, np.nan, ones if position_weight is None else position_weight)
        if not problem.all_targets_valid:
            # Before NumPy 2, selections among 0-d arrays are of float64.
            position_weight = None if position_weight is None else position_weight.astype(dtype, copy=False)
            denominators = None if denominators is None else denominators.astype(dtype, copy=False)
        return cls(index, weight, position_weight, denominators, spec)


def solve_logits(
    problem: Problem, grad_output: Array | None, wrt: tuple[str, ...], row_losses: RowLosses
) -> tuple[Any, tuple[Array, ...]]:
    """The reduced loss, and its gradient for each of ``wrt``, by a pass over the logits."""
    with np.errstate(all="ignore"):
        axis, last = problem.axis, problem.logits.ndim - 1
        x, target = np.asarray(problem.logits), np.asarray(problem.target)
        if axis != last:
            x = np.moveaxis(x, axis, -1)
            target = np.moveaxis(target, axis, -1) if problem.target_kind == "probability" else target
        operands = Operands.of(problem, target)
        reduction = Reduction(problem, operands.denominators, x.shape[:-1])
        grad_scale = reduction.grad_scale(operands.position_weight, grad_output) if wrt else None
        losses, grads = row_losses(
            x, operands.target, operands.weight, operands.position_weight, grad_scale, operands.spec, wrt
        )
        if axis != last:
            grads = tuple([np.moveaxis(grad, -1, axis) for grad in grads])
        return reduction.reduce(losses), grads
