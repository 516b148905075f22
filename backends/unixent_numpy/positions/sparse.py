"""The loss of sparse targets, from statistics of positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from unixent import sparse_targets
from unixent.protocol import LinearProblem, Problem, StatsProblem
from unixent_numpy.compat import Array
from unixent_numpy.logits.reduction import Reduction
from unixent_numpy.positions.rows import ALONG
from unixent_numpy.positions.solve import RowPass, columns_and_grads, safe_selection


def solve_sparse(
    problem: Problem | LinearProblem, grad_output: Array | None, wrt: tuple[str, ...], row_pass: RowPass
) -> tuple[Any, tuple[Array, ...]]:
    """The reduced loss, and its gradient for each of ``wrt``."""
    with np.errstate(all="ignore"):
        dtype, options, teacher, ids = np.dtype(problem.acc_dtype), problem.options, problem.teacher, problem.ids
        assert teacher is not None
        assert ids is not None
        ids, positions = np.asarray(ids), ids.shape[:-1]
        index, padding, outside = safe_selection(ids, problem)
        mask = None if problem.mask is None else np.asarray(problem.mask).astype(dtype).reshape(positions)
        reduction, v = Reduction(problem, mask, positions), mask
        if outside.any():
            v = np.where(outside.any(axis=-1), np.nan, 1 if v is None else v).astype(dtype)
            problem = replace(problem, mask=v)
        if v is not None:
            padding = padding | (v == 0)[..., None]
        one_minus_smoothing = 1 - options.label_smoothing
        factor = np.where(padding, 0, 1 if problem.weight is None else problem.weight.astype(dtype)[index])
        factor = (one_minus_smoothing * factor).astype(dtype, copy=False)
        shares = sparse_targets.shares_of(ALONG, teacher, np.asarray(problem.target).astype(dtype), padding)
        outputs = sparse_targets.outputs_of(teacher, bool(options.label_smoothing or options.z_loss))
        asked = StatsProblem(call=problem, outputs=outputs, selected=ids)
        upstream: dict[str, Array] = {}
        if wrt:
            scale = np.broadcast_to(reduction.grad_scale(v, grad_output), positions)[..., None]
            upstream = sparse_targets.upstream(shares, factor, one_minus_smoothing, scale, outputs)
        scores = tuple(name for name in wrt if name != "target")
        of_stats = {name: each if name == "selected_log_prob" else each[..., 0] for name, each in upstream.items()}
        columns, grads = columns_and_grads(asked, of_stats if scores else {}, scores, row_pass)
        stats = {name: each if name == "selected_log_prob" else each[..., None] for name, each in columns.items()}
        losses = sparse_targets.losses(ALONG, shares, factor, one_minus_smoothing, stats)[..., 0]
        losses = losses if v is None else np.where(v == 0, 0, v * losses)
        if "target" in wrt:
            grad = sparse_targets.values_gradient(
                ALONG, teacher, shares, factor, one_minus_smoothing, scale, stats, padding
            )
            grads = (*grads, grad.astype(problem.target.dtype))
        by_name = dict(zip((*scores, "target"), grads, strict=False))
        return reduction.reduce(np.asarray(losses, dtype)), tuple([by_name[name] for name in wrt])
