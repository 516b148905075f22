"""The second derivative of a loss of sparse targets, in host memory: value and gradient are the NumPy backend's.

With l of `unixent.sparse_targets`, whose statistics s_i have the upstream gradients g_i(v), v being the teacher's
numbers, the derivative of u F, F = <a, dl/dx> + <b, dl/dv>, with u what a position's loss is multiplied by, is

    dF/dx = sum_i g_i dt_i/dx + sum_i g_i(b) ds_i/dx        dF/dv = (dl/dv of t in the place of s) + <b, d2l/dv2>

for F = sum_i g_i t_i + <b, dl/dv>, where t_i is the change of s_i along a, and g_i(b) that of g_i along b. With p, r
and P_S of `unixent.sparse_rows` and the means m = <p, a>, n = <r, a>, the changes of -L_c and -L_rest have the
derivatives

    -p (a - m)        -p (a - m) in S, and r [P_S (a - n) + (1 - P_S) (m - n)] elsewhere.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from unixent import row_statistics, semantics, sparse_rows, sparse_targets
from unixent.logit_transform import LogitTransform
from unixent.protocol import SparseBackend, Teacher
from unixent.registry import get_backend
from unixent.row_statistics import Along, Classes, Solved
from unixent.semantics import product
from unixent.sparse_targets import Shares
from unixent_mindspore.collectives import Array
from unixent_mindspore.logits.problem import LossSpec


def numpy_curvature(
    spec: LossSpec, arrays: list[Array | None], grad_output: Array, a: Array, b: Array
) -> tuple[Array, Array, Array]:
    """The derivative of ``<a, d loss/d logits> + <b, d loss/d target>`` for logits, target and upstream gradient.

    It takes NumPy arrays in the order of `INPUTS`, and is computed in float64.
    """
    with np.errstate(all="ignore"):
        return _curvature(spec, arrays, grad_output, a, b)


def _curvature(
    spec: LossSpec, arrays: list[Array | None], grad_output: Array, a: Array, b: Array
) -> tuple[Array, Array, Array]:
    logits, _, _, values, weight, mask, normalizer, ids, _ = arrays
    along, teacher, options = cast(SparseBackend, get_backend("numpy")).along, spec.teacher, spec.options
    assert logits is not None
    assert values is not None
    assert ids is not None
    assert teacher is not None
    positions, count = ids.shape[:-1], ids.shape[-1]
    ids, values, b = ids.reshape(-1, count), _wide(values).reshape(-1, count), _wide(b).reshape(-1, count)
    padding, outside = ids == options.ignore_index, (ids < 0) | (ids >= spec.num_classes)
    v = np.ones(len(ids)) if mask is None else _wide(np.broadcast_to(mask, positions)).reshape(-1)
    unit = _unit_scale(spec, v, normalizer)
    is_nan = (outside & ~padding).any(-1) | np.isnan(v)
    padding, index = padding | (v == 0)[:, None], np.where(outside, 0, ids).astype(np.intp)
    b = np.where(padding, 0, b)

    x, first, second = _transform(_rows(logits, spec.axis), options.transform("float64"))
    weights, kept = np.ones(spec.num_classes) if weight is None else _wide(weight), 1 - options.label_smoothing
    factor = kept * np.where(padding, 0, weights[index])
    smoothing = weights * (options.label_smoothing / spec.num_classes) if options.label_smoothing else None
    classes = Classes(None, index, np.where(padding, 0.0, 1.0), smoothing=smoothing, z_loss=options.z_loss)
    outputs = sparse_targets.outputs_of(teacher, bool(options.label_smoothing or options.z_loss))
    shares, rows = sparse_targets.shares_of(along, teacher, values, padding), row_statistics.solve(along, x)
    one, direction = np.ones((len(ids), 1)), _rows(a, spec.axis)
    moved = first * direction

    def of_values(stats: dict[str, Array]) -> Array:
        return sparse_targets.values_gradient(along, teacher, shares, factor, kept, one, stats, padding)

    changes = row_statistics.tangents(along, rows, outputs, classes, moved)
    upstream = sparse_targets.upstream(shares, factor, kept, one, outputs)
    values_grad = of_values(row_statistics.values(along, rows, outputs, classes, 0))
    change = sum(along.sum(product(np, grad, changes[name])) for name, grad in upstream.items())
    change = change + along.sum(product(np, b, values_grad))
    values_hvp = of_values(changes) + np.where(padding, 0, _second(along, teacher, shares, b, values_grad))
    of_shares = sparse_targets.upstream(_moved(along, teacher, shares, b), factor, kept, one, ())
    hvp = row_statistics.gradient(along, rows, of_shares, classes) + _of_rows(along, rows, classes, upstream, moved)
    if options.softcap is not None:
        hvp = first * hvp + second * direction * row_statistics.gradient(along, rows, upstream, classes)
    else:
        hvp = first * hvp

    inactive, undefined = (v == 0)[:, None], is_nan[:, None] | np.isnan(rows.stats.loss)
    scale = unit * np.broadcast_to(grad_output, positions).reshape(-1) if spec.per_position else unit * grad_output
    hvp, values_hvp, change = (
        np.where(inactive, 0, np.where(undefined, math.nan, each * multiplier[:, None]))
        for each, multiplier in ((hvp, scale), (values_hvp, scale), (change, unit))
    )
    change = change.reshape(positions) if spec.per_position else change.sum()
    shape = (*positions, logits.shape[spec.axis])
    return np.moveaxis(hvp.reshape(shape), -1, spec.axis), values_hvp.reshape((*positions, count)), change


def _wide(array: Array) -> Array:
    return np.asarray(array).astype(np.float64)


def _rows(array: Array, axis: int) -> Array:
    moved = np.moveaxis(_wide(array), axis, -1)
    return moved.reshape(-1, moved.shape[-1])


def _unit_scale(spec: LossSpec, v: Array, normalizer: Array | None) -> Array:
    """What each position's loss is multiplied by for an upstream gradient of 1."""
    if spec.per_position or spec.return_terms or spec.options.reduction != "mean":
        return v
    denominator = v.sum() if normalizer is None else _wide(normalizer).sum()
    empty = 0.0 if spec.options.on_empty == "zero" else math.nan
    return v * semantics.grad_scale(np, np.ones(1), denominator, empty, host=True)


def _transform(x: Array, transform: LogitTransform) -> tuple[Array, Array, Array]:
    """x' and its first two derivatives."""
    scale, cap = transform.inverse_temperature, transform.softcap
    if cap is None:
        return scale * x, np.full_like(x, scale), np.zeros_like(x)
    w, tanh = np.exp(-2 * np.abs(x / cap)), np.tanh(x / cap)
    first = scale * 4 * w / ((1 + w) * (1 + w))
    return np.where(np.isinf(x), x, scale * cap * tanh), first, -2 * tanh / cap * first


def _moved(along: Along, teacher: Teacher, shares: Shares, b: Array) -> Shares:
    """How the shares change where the teacher's numbers move along b."""
    q = shares.q
    if shares.total is None:
        change = q * b if teacher.is_log else b
        return Shares(change, None, None if shares.rest is None else np.where(shares.rest == 0, 0, -along.sum(change)))
    if teacher.is_log:
        return Shares(q * (b - along.sum(q * b)), None, None)
    return Shares(np.where(along.sum(q) == 0, 0, (b - q * along.sum(b)) / shares.total), None, None)


def _second(along: Along, teacher: Teacher, shares: Shares, b: Array, grad: Array) -> Array:
    """How ``grad``, the gradient for the teacher's numbers, changes along b by the second derivative of the shares."""
    if shares.total is None:
        return product(np, b, grad) if teacher.is_log else np.zeros_like(b)
    along_b = along.sum(product(np, b, grad))
    if teacher.is_log:
        return product(np, b - along.sum(shares.q * b), grad) - product(np, shares.q, along_b)
    return -(product(np, along.sum(b), grad) + along_b) / shares.total


def _of_rows(along: Along, rows: Solved, classes: Classes, upstream: dict[str, Array], moved: Array) -> Array:
    """The derivative for x' of ``sum(upstream * changes)`` along ``moved``."""
    stats, z = rows.stats, classes.z_loss
    p = np.where(rows.is_pivot, stats.p, rows.p_rest)
    mean = along.sum(product(np, p, moved))
    centred = sparse_rows.masked_product(np, p, moved - mean)
    hvp = -along.sum(upstream["selected_log_prob"]) * centred
    if "regularizer" in upstream:
        total = 0 if classes.smoothing is None else classes.smoothing.sum()
        hvp = hvp + (total + 2 * z * stats.logsumexp) * centred + 2 * z * mean * p
    if "rest_log_prob" in upstream:
        rest = sparse_rows.rest(along, rows, classes)
        of_rest = along.sum(product(np, rest.share, moved))
        left = rest.sum_selected * (moved - of_rest) + (1 - rest.sum_selected) * (mean - of_rest)
        of_selected = sparse_rows.masked_product(np, rest.p_selected, moved - mean)
        hvp = hvp + upstream["rest_log_prob"] * (sparse_rows.masked_product(np, rest.share, left) - of_selected)
    return hvp
