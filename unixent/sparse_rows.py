"""Two statistics of rows that losses with sparse targets are made of, and no call asks by name.

With the classes S that are selected, P_S their probability, r = p / (1 - P_S), and coefficients b_c >= 0 of sum B,

    L_rest = -log sum_{c not in S} p_c       d L_rest / dx_c = p_c in S, and -P_S r_c elsewhere
    regularizer = sum_c b_c L_c + z lse^2    d / dx_c = p_c (B - b_c) - b_c (1 - p_c) + 2 z lse p_c

L_rest = log1p(P_S / (1 - P_S)) from one sum of exponentials inside S and one outside. The arguments are those of
`unixent.row_statistics`, which lies above.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from unixent.semantics import RowStats, not_minus_inf, row_stats

Array = Any

#: Their names; the first is -L_rest.
OUTPUTS = ("rest_log_prob", "regularizer")


class Rest(NamedTuple):
    """The classes that are not selected, as one: r_c, 0 in S; its scalars; and p_c, 0 outside S. S is taken for empty
    where it has every class."""

    share: Array
    stats: RowStats
    p_selected: Array

    @property
    def gradient(self) -> Array:
        """That of -L_rest."""
        return self.share * self.stats.one_minus_p - self.p_selected


def rest(along: Any, rows: Any, classes: Any) -> Rest:
    xp, x, index, weight = along.xp, rows.x, classes.selected, classes.selected_weight
    ones = xp.ones_like(along.take(x, index))
    marks = ones if weight is None else xp.where(weight == 0, 0, ones)
    is_selected = along.add_at(xp.zeros_like(x), index, marks) > 0
    if index.shape[-1] >= x.shape[-1]:  # perhaps none is left: then there is no such class, and nobody is asked for it
        is_selected = is_selected & (along.sum(xp.where(is_selected, 0, 1)) > 0)
    logits = xp.where(is_selected, x, -math.inf), xp.where(is_selected, -math.inf, x)
    tops = [along.max(each) for each in logits]
    inside, outside = (xp.exp(each - not_minus_inf(xp, top)) for each, top in zip(logits, tops, strict=True))
    total = along.sum(outside)
    total = xp.where(total == 0, 1, total)
    shift = xp.where(tops[0] == -math.inf, tops[1], tops[0])
    stats = row_stats(xp, shift, tops[1], along.sum(inside) / total)
    p = xp.where(rows.is_pivot, rows.stats.p, rows.p_rest)
    return Rest(outside / total, stats, xp.where(is_selected, p, 0))


def regularizer(along: Any, rows: Any, classes: Any) -> Array:
    value, base = classes.z_loss * rows.stats.logsumexp * rows.stats.logsumexp, classes.smoothing
    if base is None:
        return value
    return value + (along.sum(base) * rows.stats.loss + along.sum(product(along.xp, base, rows.gaps)))


def smoothing_gradient(along: Any, rows: Any, classes: Any) -> Array:
    """p_c (B - b_c) - b_c (1 - p_c) of each class."""
    xp, stats, base = along.xp, rows.stats, classes.smoothing
    others = along.sum(xp.where(rows.is_pivot, 0, base))
    at_pivot = others * stats.p - base * stats.one_minus_p
    return xp.where(rows.is_pivot, at_pivot, along.sum(base) * rows.p_rest - base)


def tangent(along: Any, rows: Any, name: str, classes: Any, moved: Array, of_lse: Array) -> Array:
    """How one of them changes where x moves along ``moved``, and lse by ``of_lse``."""
    xp = along.xp
    if name == "rest_log_prob":
        others = rest(along, rows, classes)
        change = others.stats.one_minus_p * along.sum(product(xp, others.share, moved))
        return change - along.sum(product(xp, others.p_selected, moved))
    change = 2 * classes.z_loss * rows.stats.logsumexp * of_lse
    if classes.smoothing is None:
        return change
    return change + along.sum(smoothing_gradient(along, rows, classes) * moved)


def add_gradient(along: Any, rows: Any, upstream: dict[str, Array], classes: Any, grad: Array) -> Array:
    """``grad`` and the gradient of ``sum(upstream * outputs)`` for x, but for what the z-loss adds through lse."""
    if "rest_log_prob" in upstream:
        grad = grad + upstream["rest_log_prob"] * rest(along, rows, classes).gradient
    if "regularizer" in upstream and classes.smoothing is not None:
        grad = grad + upstream["regularizer"] * smoothing_gradient(along, rows, classes)
    return grad


def product(xp: Any, p: Array, value: Array) -> Array:
    """p times a value, where a class of probability 0 counts nothing."""
    return xp.where(p == 0, 0, p * xp.where(p == 0, 0, value))
