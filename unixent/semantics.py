"""What the loss means, as arithmetic on arrays of any framework: positions, coefficients, means and row scalars.

``xp`` is the array namespace: ``numpy``, ``torch`` or ``jax.numpy``, or a backend's own object with the same functions
(``where``, ``abs``, ``exp``, ``log``, ``log1p``, ``isinf``, ``isnan``, ``argmax``, ``full_like``, ``iinfo``). No
function changes its arguments, moves them to another device, or reads a value, but for `mean_of` and `grad_scale` with
``host=True``; so all of them may be traced. Python numbers take the dtype of the array beside them.

Symbols are those of docs/semantics.md: v_n the position's weight, w_c the class weights, s the label smoothing, C the
number of classes, d_n the position's part of the mean's denominator.

**The pivot.** The usual log-sum-exp shifts a row by its maximum, which loses a confident row: p_y - 1 cancels, and
rounding x - max costs |x - max| units in the last place of exp. Here one class per row, the pivot k, is left out, and
the others are shifted by m, their own maximum (or any number near it):

    e_c = exp(x_c - m),   R = sum_{c != k} e_c,   D = m - x_k
    D <= 0:   t = R exp(D),   L_k = log1p(t),           1 - p_k = t / (1 + t)
    D >  0:   u = exp(-D),    L_k = D + log(R + u),     1 - p_k = R / (R + u)

Nothing cancels, the terms that matter in R lie within log C of m, and D is one number per row, so that its rounding
error can be made good. The pivot is the target where a row's loss has one term, and else the class with the largest
logit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

Array = Any


def index_positions(
    xp: Any, target: Array, mask: Array | None, one: Array, num_classes: int, ignore_index: int
) -> tuple[Array, Array | None, Array]:
    """What class indices y say of their positions, before any logit is read.

        v_n = m_n [y_n != ignore_index]

    Args:
        xp: the array namespace.
        target: class indices, of an integer dtype that ``xp`` compares with Python integers.
        mask: position weights m in the accumulation dtype, of the shape of target, or None for ones.
        one: a 0-d 1 of the accumulation dtype.
        num_classes: C.
        ignore_index: the index that marks a position as absent. One that target's dtype cannot hold marks none.

    Returns:
        ``(safe_index, position_weight, out_of_range)``: target with 0 for what lies outside [0, C); v (None: 1
        everywhere); and where a target that is not ignored lies outside [0, C), so that the loss must be NaN.
    """
    limits = xp.iinfo(target.dtype)
    outside = target < 0
    # Compared without leaving target's dtype, which need not hold C. A symbolic C is compared as it is.
    if not isinstance(num_classes, int) or num_classes <= limits.max:
        outside = outside | (target >= num_classes)
    safe_index = xp.where(outside, 0, target)
    if not limits.min <= ignore_index <= limits.max:
        return safe_index, mask, outside
    ignored = target == ignore_index
    return safe_index, xp.where(ignored, 0, one if mask is None else mask), outside & ~ignored


def denominators(
    xp: Any, position_weight: Array | None, target_weight: Array | None, out_of_range: Array | None
) -> Array | None:
    """The positions' parts of a mean's denominator, d_n = v_n w_{y_n}; None for 1 everywhere.

    Where v_n = 0 the class weight is not looked at: it may be NaN or infinite. A target out of range has weight 1.

    Args:
        xp: the array namespace.
        position_weight: v, or None for ones.
        target_weight: w_{y_n} of the safe indices, or None for ones (class probabilities: d_n = v_n).
        out_of_range: as `index_positions` returns it, or None where every target is known to be in range.
    """
    if target_weight is None:
        return position_weight
    if out_of_range is not None:
        target_weight = xp.where(out_of_range, 1, target_weight)
    if position_weight is None:
        return target_weight
    return xp.where(position_weight == 0, 0, position_weight * target_weight)


class SmoothingCoefs(NamedTuple):
    """What label smoothing gives each class: b_c = w_c s / C, their sum, and the sum without each class."""

    base: Array
    total: Array
    without: Array


def smoothing_coefs(xp: Any, weight: Array, class_index: Array, smoothing: Any) -> SmoothingCoefs:
    """b_c = w_c s / C, sum_c b_c, and sum_{j != c} b_j without cancellation.

    total - b_c cancels only for a class that outweighs all others together. There is at most one; its others are summed
    by themselves.

    Args:
        xp: the array namespace.
        weight: class weights w (C,), ones where there are none, in the widest dtype at hand: round the result.
        class_index: 0, 1, ..., C - 1, on weight's device.
        smoothing: s, a number that does not narrow weight.
    """
    base = weight * (smoothing / weight.shape[0])
    total = base.sum()
    heaviest = class_index == xp.argmax(base)
    without = xp.where(heaviest, xp.where(heaviest, 0, base).sum(), total - base)
    return SmoothingCoefs(base, total, without)


def mean_of(xp: Any, numerator: Array, denominator: Any, empty: float, host: bool = False) -> Array:
    """``numerator / denominator``, and ``empty`` where the denominator is 0. A NaN in the numerator stays NaN.

    Differentiable with respect to the numerator: an empty mean of 0 has the gradient 0, one of NaN the gradient NaN.

    Args:
        xp: the array namespace.
        numerator: sum of the positions' losses.
        denominator: a number, or an array that broadcasts against the numerator.
        empty: 0 or NaN.
        host: the denominator is one number whose value can be read without stalling.
    """
    if host:
        if denominator != 0:
            return numerator / denominator
        return numerator * empty if math.isnan(empty) else xp.where(xp.isnan(numerator), numerator, 0)
    is_empty = denominator == 0
    if math.isnan(empty):
        return numerator / xp.where(is_empty, empty, denominator)
    # The selections hold constants, so that no derivative of the quotient passes an empty mean.
    mean = xp.where(is_empty, 0, numerator / xp.where(is_empty, 1, denominator))
    return xp.where(is_empty & xp.isnan(numerator), math.nan, mean)


def grad_scale(xp: Any, grad_output: Array, denominator: Any, empty: float, host: bool = False) -> Array:
    """The derivative of `mean_of` with respect to its numerator, times ``grad_output``: ``empty`` for an empty mean."""
    if host:
        return grad_output / denominator if denominator != 0 else xp.full_like(grad_output, empty)
    is_empty = denominator == 0
    return xp.where(is_empty, empty, grad_output / xp.where(is_empty, 1, denominator))


LARGE_MEAN_SCALE = 2.0**-64


def mean_of_large(losses: Array, denominator: Any, sum_of: Callable[[Array], Array]) -> Array:
    """``sum_of(losses) / denominator`` where that sum is beyond the accumulation dtype, though the mean is not.

    A power of two scales the losses, so that nothing but what is far below the sum is rounded; the mean of a loss that
    is infinite itself stays infinite. It takes the place of `mean_of` where ``sum_of(losses)`` is infinite and the
    denominator is not 0: a check of two numbers where they can be read. Elsewhere a backend adds the losses times
    `LARGE_MEAN_SCALE` up beside the losses, and selects.

    Args:
        losses: the positions' losses, in the accumulation dtype.
        denominator: as in `mean_of`.
        sum_of: the sum over the positions, of all processes.

    Example:
        >>> import numpy as np
        >>> losses = np.array([3e38, 2e38], np.float32)
        >>> print(mean_of_large(losses, 2, lambda values: values.sum()))
        2.5e+38
    """
    return sum_of(losses * LARGE_MEAN_SCALE) / denominator / LARGE_MEAN_SCALE


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


_NORMAL = {"float32": (2.0**-126, (2 - 2.0**-23) * 2.0**127), "float64": (2.0**-1022, (2 - 2.0**-52) * 2.0**1023)}


class LogitTransform(NamedTuple):
    """What becomes of logits before the loss, x' = b cap(x) with cap(x) = a tanh(x / a), as a kernel takes it.

    Attributes:
        softcap: a, or None where cap(x) is x.
        inverse_temperature: b.
    """

    softcap: float | None = None
    inverse_temperature: float = 1.0

    @classmethod
    def of(cls, scale: float, softcap: float | None, temperature: float, acc_dtype: str) -> LogitTransform:
        """That of the options: cap(k x) / T has the softcap a / k and b = k / T.

        The softcap is one that the accumulation dtype holds, so that no kernel sees it round to infinity or 0: none
        above the largest number, where cap(x) is x; below the smallest normal one that number, where what is capped is
        0 against any other logit, or its bound a b is kept.

        Raises:
            OverflowError: b itself is no normal number of the accumulation dtype.

        Example:
            >>> LogitTransform.of(0.5, 30.0, 0.7, "float32")
            LogitTransform(softcap=60.0, inverse_temperature=0.7142857142857143)
            >>> LogitTransform.of(1.0, 1e300, 1.0, "float32")
            LogitTransform(softcap=None, inverse_temperature=1.0)
        """
        smallest, largest = _NORMAL[acc_dtype]
        inverse_temperature = scale / temperature
        if not smallest <= inverse_temperature <= largest:
            raise OverflowError(f"scale / temperature in [{smallest:.3g}, {largest:.3g}], to compute in {acc_dtype}")
        if softcap is None or softcap / scale > largest:
            return cls(None, inverse_temperature)
        if softcap / scale >= smallest:
            return cls(softcap / scale, inverse_temperature)
        if inverse_temperature * smallest > 2.0**-64:
            inverse_temperature = softcap / temperature / smallest
        return cls(smallest, inverse_temperature)


def product(xp: Any, coefficient: Any, value: Array) -> Array:
    """``coefficient * value`` with 0 * inf = 0: what has no weight adds nothing. NaN stays NaN."""
    return xp.where((coefficient == 0) & xp.isinf(value), 0, coefficient * value)
