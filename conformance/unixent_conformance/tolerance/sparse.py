"""The error model of what sparse targets add to `bounds`, with u and C as there.

* A coefficient (1 - s) w_k q_k / Q is an exponential of a given logarithm (4 u) or a given number, products and a
  quotient (8 u), and a sum of K numbers (u log2 K); where logarithms are renormalized, their difference from the
  largest costs u |log q_k - max| more. It is relative to the coefficient, and so to its term.
* 1 - Q = (1 - q_j) - sum_{k != j} q_k is within (6 + log2 K) u of the sum of those magnitudes.
* L_rest is one class' loss, of the classes outside S as one: (8 + 2 log2 C) u relative to itself, its derivative an
  entry of a gradient.
* dl/dq_k is a sum of losses of one class each, relative to the sum of the terms' magnitudes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.model import Array
from unixent_conformance.oracle import Solution
from unixent_conformance.oracle.sparse import SparseRows
from unixent_conformance.tolerance import bounds
from unixent_conformance.tolerance.formats import Estimate, log2, times


def target_gradient(s: Solution, rows: Any = None, moved: Any = None, room: Any = 1) -> Estimate:
    """dl/dq_k, or dl/dlog q_k; ``moved`` is what each L_k and L_rest may move by beside their roundings."""
    rows = s.rows if rows is None else rows
    assert isinstance(rows, SparseRows)
    u, tiny = bounds.units_of(s)
    with np.errstate(all="ignore"):
        of_teacher = 2 * rows.share_roundings.max(axis=1, keepdims=True)
        relative = (16 + 2 * log2(rows.classes) + of_teacher) * u + bounds.denominator_error(s)
        bound = times(rows.target_magnitudes(), relative * room)
        scale = abs(rows.position_weight)[:, None] * (abs(rows.factor) + abs(rows.factor).max(axis=1, keepdims=True))
        scale = (scale + rows.rest_factor) / rows.total * np.where(rows.logarithmic, rows.q, 1)
        change = np.zeros(()) if moved is None else moved
        if roundings := bounds.transform_roundings(s):
            change = change + roundings * u * _sensitivity(rows)
        bound = np.where(rows.padding, 0, bound + times(scale, change) + tiny * rows.classes * (1 + scale))
        value = s.scaled(rows.target_gradients())
        bound = np.where(rows.position_weight[:, None] == 0, 0, abs(s.scaled(bound)) + np.where(rows.padding, 0, tiny))
        shape = np.shape(s.call.target)
        return Estimate(value.reshape(shape), bound.reshape(shape))


def _sensitivity(rows: SparseRows) -> Array:
    """How far each L_k, or L_rest, moves with all x' by as much as they are."""
    sizes = np.where(np.isfinite(rows.logits), abs(rows.logits), 0)
    each = np.take_along_axis(sizes, rows.index, axis=1) + times(rows.p, sizes).sum(axis=1, keepdims=True)
    return np.asarray(each.max(axis=1, keepdims=True) + (abs(rows.rest_grad) * sizes).sum(axis=1, keepdims=True))
