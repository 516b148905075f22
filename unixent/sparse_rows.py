"""Two statistics of rows that losses with sparse targets are made of, and no call asks by name.

With the classes S that are selected, P_S their probability, r = p / (1 - P_S), and coefficients b_c >= 0 of sum B,

    L_rest = -log sum_{c not in S} p_c       d L_rest / dx_c = p_c in S, and -P_S r_c elsewhere
    regularizer = sum_c b_c L_c + z lse^2    d / dx_c = p_c (B - b_c) - b_c (1 - p_c) + 2 z lse p_c

L_rest = log1p(P_S / (1 - P_S)) from one sum of exponentials inside S and one outside: of two log-sums the difference
cancels where S has little. The arguments are those of `unixent.row_statistics`, which lies above.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from unixent.pivot import not_minus_inf, two_diff

Array = Any

#: Their names; the first is -L_rest.
OUTPUTS = ("rest_log_prob", "regularizer")


class Rest(NamedTuple):
    """The classes that are not selected, as one: r_c, 0 in S; L_rest; P_S; and p_c, 0 outside S. S is taken for empty
    where it has every class."""

    share: Array
    loss: Array
    sum_selected: Array
    p_selected: Array


def rest(along: Any, rows: Any, classes: Any) -> Rest:
    xp, x, index, weight = along.xp, rows.x, classes.selected, classes.selected_weight
    # Of the dtype of x, which compilers and strict modes do not promote indices to.
    ones = xp.where(index < 0, xp.zeros_like(x[..., :1]), 1)
    marks = ones if weight is None else xp.where(weight == 0, 0, ones)
    is_selected = along.add_at(xp.zeros_like(x), index, marks) > 0
    num_classes = x.shape[-1] if along.num_classes is None else along.num_classes
    if index.shape[-1] >= num_classes:  # perhaps none is left: then there is no such class, and nobody is asked for it
        (num_left,) = along.total(along.sum(xp.where(is_selected | (along.classes(x) >= num_classes), 0, 1)))
        is_selected = is_selected & (num_left > 0)
    logits = xp.where(is_selected, x, -math.inf), xp.where(is_selected, -math.inf, x)
    tops = [along.max(each) for each in logits]
    inside, outside = (xp.exp(each - not_minus_inf(xp, top)) for each, top in zip(logits, tops, strict=True))
    sum_inside, total = along.total(along.sum(inside), along.sum(outside))
    total = xp.where(total == 0, 1, total)
    # P_S / (1 - P_S) = ratio exp(gap). Beyond a gap of 20, its logarithm, which does not overflow and is not near 0.
    ratio = sum_inside / total
    gap, dropped = two_diff(xp, xp.where(tops[0] == -math.inf, tops[1], tops[0]), tops[1])
    is_far = gap > 20
    odds = ratio * xp.exp(xp.where(is_far, 0, gap))
    odds = odds + odds * dropped
    near_total = 1 + odds
    far_total = xp.where(is_far, ratio, 1) + xp.exp(-xp.where(is_far, gap, 20))
    loss = xp.where(is_far, gap + (dropped + xp.log(far_total)), xp.log1p(odds))
    sum_selected = xp.where(is_far, ratio / far_total, odds / near_total)
    p = xp.where(rows.is_pivot, along.beside(rows.stats.p), rows.p_rest)
    return Rest(outside / along.beside(total), loss, sum_selected, xp.where(is_selected, p, 0))


def _coefs_here(along: Any, x: Array, base: Array) -> Array:
    """b_c of the classes that x holds, with the axes of x."""
    if along.num_classes is not None:
        index = along.classes(x)
        exists = index < along.num_classes
        base = along.xp.where(exists, base[along.xp.where(exists, index, 0)], 0)
    return base.reshape((1,) * (x.ndim - 1) + x.shape[-1:])


def regularizer(along: Any, rows: Any, classes: Any) -> Array:
    value, base = classes.z_loss * rows.stats.logsumexp * rows.stats.logsumexp, classes.smoothing
    if base is None:
        return value
    (gaps,) = along.total(along.sum(masked_product(along.xp, _coefs_here(along, rows.x, base), rows.gaps)))
    return value + (base.sum() * rows.stats.loss + gaps)


def smoothing_gradient(along: Any, rows: Any, classes: Any) -> Array:
    """p_c (B - b_c) - b_c (1 - p_c) of each class."""
    xp, stats, base = along.xp, rows.stats, classes.smoothing
    total, here = base.sum(), _coefs_here(along, rows.x, base)
    # B - b_c cancels only for a class that outweighs all others together: those are summed by themselves.
    outweighs = base > total / 2
    without = xp.where(outweighs, xp.where(outweighs, 0, base).sum(), total - base)
    others = without[xp.where(rows.pivot < base.shape[0], rows.pivot, 0)]
    at_pivot = along.beside(others * stats.p) - here * along.beside(stats.one_minus_p)
    return xp.where(rows.is_pivot, at_pivot, total * rows.p_rest - here)


def tangent(along: Any, rows: Any, name: str, classes: Any, moved: Array, of_lse: Array) -> Array:
    """How one of them changes where x moves along ``moved``, and lse by ``of_lse``."""
    xp = along.xp
    if name == "rest_log_prob":
        others = rest(along, rows, classes)
        outside, inside = masked_product(xp, others.share, moved), masked_product(xp, others.p_selected, moved)
        outside, inside = along.total(along.sum(outside), along.sum(inside))
        return others.sum_selected * outside - inside
    change = 2 * classes.z_loss * rows.stats.logsumexp * of_lse
    if classes.smoothing is None:
        return change
    return change + along.total(along.sum(smoothing_gradient(along, rows, classes) * moved))[0]


def add_gradient(along: Any, rows: Any, upstream: dict[str, Array], classes: Any, grad: Array) -> Array:
    """``grad`` and the gradient of ``sum(upstream * outputs)`` for x, but for what the z-loss adds through lse."""
    if "rest_log_prob" in upstream:
        others = rest(along, rows, classes)
        of_rest = others.share * along.beside(others.sum_selected) - others.p_selected
        grad = grad + along.beside(upstream["rest_log_prob"]) * of_rest
    if "regularizer" in upstream and classes.smoothing is not None:
        grad = grad + along.beside(upstream["regularizer"]) * smoothing_gradient(along, rows, classes)
    return grad


def masked_product(xp: Any, p: Array, value: Array) -> Array:
    """p times a value: 0 where p is, even of NaN, and without a derivative for the value there."""
    return xp.where(p == 0, 0, p * xp.where(p == 0, 0, value))
