"""What the loss means, as arithmetic on arrays of any framework: positions, coefficients and means.

``xp`` is the array namespace: ``numpy``, ``torch`` or ``jax.numpy``, or a backend's own object with the same functions
(``where``, ``abs``, ``exp``, ``log``, ``log1p``, ``isinf``, ``isnan``, ``argmax``, ``full_like``, ``iinfo``). No
function changes its arguments, moves them to another device, or reads a value, but for `mean_of` and `grad_scale` with
``host=True``; so all of them may be traced. Python numbers take the dtype of the array beside them.

Symbols are those of docs/semantics.md: v_n the position's weight, w_c the class weights, s the label smoothing, C the
number of classes, d_n the position's part of the mean's denominator. What a row comes to is in `unixent.pivot`.
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
    # The selections hold constants, so that no derivative of the quotient passes an empty mean; one inside the other,
    # since torch's compiler can't join the conditions where it knows that there are no positions.
    of_none = xp.where(xp.isnan(numerator), math.nan, xp.zeros_like(numerator))
    return xp.where(is_empty, of_none, numerator / xp.where(is_empty, 1, denominator))


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


def product(xp: Any, coefficient: Any, value: Array) -> Array:
    """``coefficient * value`` with 0 * inf = 0: what has no weight adds nothing. NaN stays NaN."""
    return xp.where((coefficient == 0) & xp.isinf(value), 0, coefficient * value)
