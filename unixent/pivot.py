"""What a row of logits comes to, relative to one of its classes, its pivot: one number per row each.

The usual log-sum-exp shifts a row by its maximum, which loses a confident row: p_y - 1 cancels, and rounding x - max
costs |x - max| units in the last place of exp. Here one class per row, the pivot k, is left out, and the others are
shifted by m, their own maximum (or any number near it):

    e_c = exp(x_c - m),   R = sum_{c != k} e_c,   D = m - x_k
    D <= 0:   t = R exp(D),   L_k = log1p(t),           1 - p_k = t / (1 + t)
    D >  0:   u = exp(-D),    L_k = D + log(R + u),     1 - p_k = R / (R + u)

Nothing cancels, the terms that matter in R lie within log C of m, and D is one number per row, so that its rounding
error can be made good. The pivot is the target where a row's loss has one term, and else the class with the largest
logit.

``xp`` is the array namespace of `unixent.semantics`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from unixent.semantics import Array, product


class RowStats(NamedTuple):
    """What a row comes to, relative to its pivot k: one number per row each.

    Attributes:
        loss: L_k = lse - x_k.
        logsumexp: lse.
        logsumexp_minus_shift: lse - m, which the difference would cancel where the pivot is far below.
        p: the pivot's probability p_k.
        one_minus_p: 1 - p_k, accurate where p_k rounds to 1.
        exp_scale: what turns e_c = exp(x_c - m) into p_c, for c != k.
    """

    loss: Array
    logsumexp: Array
    logsumexp_minus_shift: Array
    p: Array
    one_minus_p: Array
    exp_scale: Array


def two_diff(xp: Any, a: Array, b: Array) -> tuple[Array, Array]:
    """``a - b`` rounded, and what the rounding dropped (Knuth, TAOCP vol. 2, 4.2.2); 0 where that is not finite."""
    high = a - b
    back = high - a
    low = (a - (high - back)) - (b + back)
    return high, xp.where(xp.abs(high) < math.inf, low, 0)


def row_stats(xp: Any, shift: Array, pivot_logit: Array, sum_rest: Array) -> RowStats:
    """The scalars of rows from m, x_k and R (see the head of this module), each to a few units in the last place.

    A pivot without any other class (C = 1, or all of them -inf) is its own shift, with R = 0. A row of only -inf, and
    one that holds +inf, comes out as NaN.

    Args:
        xp: the array namespace.
        shift: m. Float32 or float64, like the other two.
        pivot_logit: x_k.
        sum_rest: R.
    """
    # The loss of a logit of +inf would be 0: no answer.
    sum_rest = xp.where(pivot_logit == math.inf, math.nan, sum_rest)
    gap, dropped = two_diff(xp, shift, pivot_logit)
    far = gap > 0
    # |D|; `abs` would have the derivative 0 where the pivot ties with the shift.
    distance = xp.where(far, gap, -gap)
    # exp(-|D|): u where the pivot is below the shift, t / R elsewhere.
    decay = xp.exp(-distance)
    # exp(D) is subnormal long before R exp(D) is: there the two halves of D are taken in turn.
    half = xp.exp(distance * -0.5)
    deep = distance > (60.0 if gap.dtype == xp.float32 else 600.0)
    odds = xp.where(deep, (sum_rest * half) * half, sum_rest * decay)
    # exp(D + dropped) = exp(D) (1 + dropped), in the order that rounds once.
    odds = odds + odds * dropped
    decay = decay + decay * xp.where(far, -dropped, dropped)
    total = sum_rest + decay
    norm = xp.where(far, total, 1 + odds)
    log_norm = xp.where(far, xp.log(total), xp.log1p(odds))
    return RowStats(
        loss=xp.where(far, gap + (dropped + log_norm), log_norm),
        logsumexp=xp.where(far, shift, pivot_logit) + log_norm,
        logsumexp_minus_shift=xp.where(far, log_norm, (log_norm - dropped) - gap),
        p=xp.where(far, decay, 1) / norm,
        one_minus_p=xp.where(far, sum_rest, odds) / norm,
        exp_scale=xp.where(far, 1, decay) / norm,
    )


class ShareStats(NamedTuple):
    """What a process finds in its share of a row's classes, its pivot left out: one number per row each.

    Attributes:
        pivot: k among the classes here; of probabilities that of the largest logit.
        pivot_logit: x_k; with class indices 0 where the target is another process's.
        max_rest: m, the largest of the others; -inf where there is none.
        sum_rest: R.
        weighted_gaps: sum over the others of t_c (l - x_c), where l is m, or x_k of probabilities, and 0 for -inf.
        rest_coef: sum over the others of t_c.
        pivot_coef: t_k.
    """

    pivot: Array
    pivot_logit: Array
    max_rest: Array
    sum_rest: Array
    weighted_gaps: Array
    rest_coef: Array
    pivot_coef: Array

    def with_indices(self, xp: Any, shift: Array) -> tuple[Array, Array]:
        """R and the weighted gaps, relative to the maximum of all processes (0 for -inf)."""
        sum_rest = self.sum_rest * xp.exp(self.max_rest - shift)
        return sum_rest, self.weighted_gaps + product(xp, self.rest_coef, shift - not_minus_inf(xp, self.max_rest))

    def with_probabilities(self, xp: Any, pivot_logit: Array, owns_pivot: Array) -> ShareStats:
        """The same relative to the pivot of all processes. Where that is another one, x_k is one of the rest here."""
        level = not_minus_inf(xp, self.pivot_logit)
        gaps = self.weighted_gaps + product(xp, self.rest_coef, pivot_logit - level)
        sum_all = self.sum_rest * xp.exp(self.max_rest - level)
        sum_all = xp.where(self.pivot_logit == -math.inf, sum_all, sum_all + 1)
        return ShareStats(
            pivot=self.pivot,
            pivot_logit=pivot_logit,
            max_rest=xp.where(owns_pivot, self.max_rest, self.pivot_logit),
            sum_rest=xp.where(owns_pivot, self.sum_rest, sum_all),
            weighted_gaps=xp.where(
                owns_pivot, gaps, gaps + product(xp, self.pivot_coef, pivot_logit - self.pivot_logit)
            ),
            rest_coef=self.rest_coef + xp.where(owns_pivot, 0, self.pivot_coef),
            pivot_coef=xp.where(owns_pivot, self.pivot_coef, 0),
        )


def not_minus_inf(xp: Any, shift: Array) -> Array:
    """A shift, or 0 where it is -inf, whose own difference would be NaN."""
    return xp.where(shift == -math.inf, 0, shift)
