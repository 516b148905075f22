"""The statistics of rows of logits, as arithmetic on arrays of any framework: values, tangents and gradients.

Rows x are P + (C,), transformed already (see `unixent.logit_transform`), in the accumulation dtype. The pivot j of a
row is its largest logit. With its loss L_j and the gaps d_c = x_j - x_c >= 0, every statistic is a sum of terms of one
sign:

    L_c = L_j + d_c          entropy H = L_j + D,  D = sum_{c != j} p_c d_c
    log sum p^2 = log1p(Q) - 2 L_j,  Q = sum_{c != j} (p_c / p_j)^2 <= (1 - p_j) / p_j: no more than half cancels

and so is every derivative,

    d L_i / dx_c = p_c - [c = i]          d lse / dx_c = p_c          d H / dx_c = p_c (d_c - D),

as long as p_j - 1 is taken from the exponentials of the other classes. ``xp`` is the array namespace of
`unixent.semantics`, with what `Along` lists besides.

Classes that are split over processes take the `Along` of `unixent.share_statistics`: there x holds the classes of this
process, indices count over all of them, and whatever is one number for each row is the same on every process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from unixent import sparse_rows
from unixent.pivot import RowStats, row_stats
from unixent.sparse_rows import masked_product

Array = Any

#: Outputs that have a derivative, but for the loss, which has a pass of its own.
GRADED = ("log_prob", "entropy", "logsumexp", "selected_log_prob", *sparse_rows.OUTPUTS)

#: Outputs that are classes or numbers of them.
INDICES = frozenset({"prediction", "rank", "top_index"})

#: Outputs that have more than one number for each position.
WIDE = frozenset({"selected_log_prob", "top_log_prob", "top_index"})

#: Outputs of the k largest.
OF_K = ("top_log_prob", "top_index")


class Along(NamedTuple):
    """What frameworks call differently, along the last axis, which is kept where there is a result for each row.

    Attributes:
        xp: the array namespace.
        take: ``(x, index) -> x[..., index]``, index P + (K,).
        sum, max: ``(x) -> P + (1,)``.
        argmax: ``(x) -> P + (1,)``, the first of the largest; of NaN where there is one.
        top: ``(x, k) -> P + (k,)``, the classes of the k largest, equal ones in the order of their classes.
        classes: ``(x) -> 0, 1, ..., C - 1``, to broadcast against x.
        add_at: ``(x, index, values) -> x`` with values P + (K,) added at index, repeated ones too.
        total: ``(*columns) -> columns``, sums of the classes here as sums of all classes.
        beside: ``(column) -> column``, as it meets the classes here: its derivative is a sum over all classes.
        num_classes: C where x does not hold all classes. One whose index is C is none: a logit of -inf.
        product: ``(coef, value) -> coef * value`` with 0 * inf = 0, whose derivative for coef is the value, inf too.
        constant: ``(x) -> x``, without a derivative.
        astype: ``(x, name) -> x`` in the dtype of that name.
    """

    xp: Any
    take: Callable[..., Array]
    sum: Callable[..., Array]
    max: Callable[..., Array]
    argmax: Callable[..., Array]
    top: Callable[..., Array]
    classes: Callable[..., Array]
    add_at: Callable[..., Array]
    product: Callable[..., Array]
    constant: Callable[..., Array]
    astype: Callable[..., Array]
    total: Callable[..., tuple[Array, ...]] = lambda *columns: columns
    beside: Callable[[Array], Array] = lambda column: column
    num_classes: Any = None


class Classes(NamedTuple):
    """Classes that a call asks about, safe to gather with.

    Attributes:
        target: P + (1,), or None.
        selected: P + (K,), or None.
        selected_weight: 1 where a class was selected, 0 at padding, NaN where it is no class; None for ones.
        top: P + (k,), those of the k largest logits, where they have been found.
        smoothing: b_c of the regularizer, (C,), or None for zeros.
        z_loss: z of the regularizer.
    """

    target: Array | None
    selected: Array | None
    selected_weight: Array | None
    top: Array | None = None
    smoothing: Array | None = None
    z_loss: float = 0.0


class Solved(NamedTuple):
    """Rows whose exponentials have been summed: per row P + (1,), per class P + (C,).

    Attributes:
        x: the rows.
        scalars: what there is one of for each row.
        is_pivot: where c = j.
        gaps: d_c.
        p_rest: p_c, 0 at the pivot.
    """

    x: Array
    scalars: RowScalars
    is_pivot: Array
    gaps: Array
    p_rest: Array

    @property
    def pivot(self) -> Array:
        return self.scalars.pivot

    @property
    def stats(self) -> RowStats:
        return self.scalars.stats

    @property
    def gap_mean(self) -> Array:
        return self.scalars.gap_mean


class RowScalars(NamedTuple):
    """What a row comes to, P + (1,): with it, its other numbers need no sum over the classes.

    Attributes:
        pivot: j.
        pivot_logit: x_j.
        shift: what exponentials are relative to.
        gap_mean: D.
        stats: the scalars from the pivot.
    """

    pivot: Array
    pivot_logit: Array
    shift: Array
    gap_mean: Array
    stats: RowStats

    @property
    def columns(self) -> tuple[Array, ...]:
        """All of them side by side, for what keeps arrays alone."""
        return (*self[:4], *self.stats)

    @classmethod
    def of(cls, columns: tuple[Array, ...]) -> RowScalars:
        pivot, pivot_logit, shift, gap_mean, *stats = columns
        return cls(pivot, pivot_logit, shift, gap_mean, RowStats(*stats))


def solve(along: Along, x: Array) -> Solved:
    """Solve rows. One that has NaN, +inf or nothing but -inf comes out as NaN."""
    xp = along.xp
    pivot = along.argmax(x)
    is_pivot = along.classes(x) == pivot
    pivot_logit = along.take(x, pivot)
    rest = xp.where(is_pivot, -math.inf, x)
    largest = along.max(rest)
    shift = xp.where(largest == -math.inf, pivot_logit, largest)
    exps, gaps = xp.exp(rest - shift), along.beside(pivot_logit) - x
    sum_rest, gap_sum = along.total(along.sum(exps), along.sum(masked_product(xp, exps, gaps)))
    stats = row_stats(xp, shift, pivot_logit, sum_rest)
    scalars = RowScalars(pivot, pivot_logit, shift, masked_product(xp, stats.exp_scale, gap_sum), stats)
    return Solved(x, scalars, is_pivot, gaps, exps * along.beside(stats.exp_scale))


def solve_again(along: Along, x: Array, scalars: RowScalars) -> Solved:
    """Rows whose scalars are known. Nothing is summed: of classes that are split, nothing is communicated."""
    xp = along.xp
    is_pivot = along.classes(x) == scalars.pivot
    exps = xp.exp(xp.where(is_pivot, -math.inf, x) - scalars.shift)
    return Solved(x, scalars, is_pivot, scalars.pivot_logit - x, exps * scalars.stats.exp_scale)


def values(along: Along, rows: Solved, outputs: tuple[str, ...], classes: Classes, k: int) -> dict[str, Array]:
    """The outputs, each P + (1,), P + (K,) or P + (k,). NaN rows have NaN; their classes mean nothing."""
    if any(name in outputs for name in OF_K):
        classes = classes._replace(top=along.top(rows.x, k))
    return {name: _VALUES[name](along, rows, classes) for name in outputs}


def _nll(along: Along, rows: Solved, index: Array) -> Array:
    # Selected, not a gap of 0: differentiated, that would add 1 and -1 to a small derivative in any order.
    loss = rows.stats.loss
    return along.xp.where(index == rows.pivot, loss, along.take(rows.gaps, index) + loss)


def _selected(along: Along, rows: Solved, classes: Classes) -> Array:
    log_probs = 0 - _nll(along, rows, classes.selected)
    weight = classes.selected_weight
    if weight is None:
        return log_probs
    return along.xp.where(weight == 0, 0, along.xp.where(along.xp.isnan(weight), math.nan, log_probs))


def _log_sum_sq(along: Along, rows: Solved, classes: Classes) -> Array:
    ratios = rows.p_rest / rows.stats.p
    (ratio_sum,) = along.total(along.sum(ratios * ratios))
    return along.xp.log1p(ratio_sum) - 2 * rows.stats.loss


def _rank(along: Along, rows: Solved, classes: Classes) -> Array:
    own = along.take(rows.x, classes.target)
    before = (rows.x > own) | ((rows.x == own) & (along.classes(rows.x) < classes.target))
    return along.total(along.sum(before))[0]


def _mean_logit(along: Along, rows: Solved, classes: Classes) -> Array:
    x, num_classes = rows.x, along.num_classes
    if num_classes is not None:
        x = along.xp.where(along.classes(x) < num_classes, x, 0)
    return along.total(along.sum(x))[0] / (x.shape[-1] if num_classes is None else num_classes)


_VALUES: dict[str, Callable[[Along, Solved, Classes], Array]] = {
    "log_prob": lambda along, rows, classes: 0 - _nll(along, rows, classes.target),
    "entropy": lambda along, rows, classes: rows.stats.loss + rows.gap_mean,
    "logsumexp": lambda along, rows, classes: rows.stats.logsumexp,
    "selected_log_prob": _selected,
    "rest_log_prob": lambda along, rows, classes: 0 - sparse_rows.rest(along, rows, classes).loss,
    "regularizer": sparse_rows.regularizer,
    "log_sum_sq": _log_sum_sq,
    "max_prob": lambda along, rows, classes: rows.stats.p,
    "prediction": lambda along, rows, classes: rows.pivot,
    "correct": lambda along, rows, classes: rows.pivot == classes.target,
    "rank": _rank,
    "top_log_prob": lambda along, rows, classes: 0 - _nll(along, rows, classes.top),
    "top_index": lambda along, rows, classes: classes.top,
    "mean_logit": _mean_logit,
}


def settled(
    xp: Any, name: str, value: Array, undefined: Array, inactive: Array | None, selected_weight: Array | None
) -> Array:
    """An output with what is due where nothing can be known, and where nothing counts: both are P + (1,)."""
    if name in INDICES or name == "correct":
        none = undefined if inactive is None else undefined | inactive
        return xp.where(none, False if name == "correct" else -1, value)
    # A product, whose derivative is NaN as well.
    value = value * xp.where(undefined, math.nan, xp.ones_like(value))
    if name == "selected_log_prob" and selected_weight is not None:
        value = xp.where(selected_weight == 0, 0, value)
    return value if inactive is None else xp.where(inactive, 0, value)


def tangents(along: Along, rows: Solved, outputs: tuple[str, ...], classes: Classes, moved: Array) -> dict[str, Array]:
    """How the graded outputs change where x moves along ``moved``; linear in it, and accurate transposed."""
    xp, stats = along.xp, rows.stats
    of_pivot, (rest,) = along.take(moved, rows.pivot), along.total(along.sum(masked_product(xp, rows.p_rest, moved)))
    changes: dict[str, Array] = {}
    for name in outputs:
        if name == "logsumexp":
            changes[name] = stats.p * of_pivot + rest
        elif name in sparse_rows.OUTPUTS:
            changes[name] = sparse_rows.tangent(along, rows, name, classes, moved, stats.p * of_pivot + rest)
        elif name == "entropy":
            rise = masked_product(xp, rows.p_rest, rows.gaps - along.beside(rows.gap_mean))
            (rise,) = along.total(along.sum(rise * moved))
            changes[name] = rise - stats.p * rows.gap_mean * of_pivot
        elif name in ("log_prob", "selected_log_prob"):
            index = classes.target if name == "log_prob" else classes.selected
            own = along.take(moved, index)
            change = xp.where(index == rows.pivot, stats.one_minus_p * own, own - stats.p * of_pivot) - rest
            weight = None if name == "log_prob" else classes.selected_weight
            changes[name] = change if weight is None else weight * change
    return changes


def gradient(along: Along, rows: Solved, upstream: dict[str, Array], classes: Classes) -> Array:
    """The gradient of ``sum(upstream * outputs)`` for x, of upstream gradients as `values` has the outputs.

        p_c (g_lse - G + g_H (d_c - D)) + what is asked of the class itself,

    with G the sum of the upstream gradients of log-probabilities; at the pivot, with a_j those of it alone,

        p_j (g_lse - g_H D - (G - a_j)) + (1 - p_j) a_j
    """
    xp, stats = along.xp, rows.stats
    own: list[tuple[Array, Array]] = []
    at_pivot = elsewhere = xp.zeros_like(stats.p)
    for name, index in (("log_prob", classes.target), ("selected_log_prob", classes.selected)):
        if name not in upstream:
            continue
        grad = upstream[name]
        if name == "selected_log_prob" and classes.selected_weight is not None:
            grad = xp.where(classes.selected_weight == 0, 0, classes.selected_weight * grad)
        is_pivot = index == rows.pivot
        at_pivot = at_pivot + along.sum(xp.where(is_pivot, grad, 0))
        elsewhere = elsewhere + along.sum(xp.where(is_pivot, 0, grad))
        own.append((index, grad))
    of_rows = upstream["logsumexp"] - elsewhere if "logsumexp" in upstream else 0 - elsewhere
    if "regularizer" in upstream and classes.z_loss:
        of_rows = of_rows + 2 * classes.z_loss * stats.logsumexp * upstream["regularizer"]
    of_pivot, factor = of_rows, of_rows - at_pivot
    factor = along.beside(factor)
    if "entropy" in upstream:
        of_pivot = of_pivot - upstream["entropy"] * rows.gap_mean
        gaps = xp.where(rows.p_rest == 0, 0, rows.gaps - along.beside(rows.gap_mean))
        factor = factor + along.beside(upstream["entropy"]) * gaps
    grad_x = rows.p_rest * factor
    for index, grad in own:
        grad_x = along.add_at(grad_x, index, along.beside(grad))
    grad_x = xp.where(rows.is_pivot, along.beside(stats.p * of_pivot + stats.one_minus_p * at_pivot), grad_x)
    return sparse_rows.add_gradient(along, rows, upstream, classes, grad_x)
