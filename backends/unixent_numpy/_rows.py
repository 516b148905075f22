"""The arithmetic of one block of rows: log-sum-exp statistics by a pivot, and the losses and gradients made of them.

A block is a C-contiguous [rows, C] array of the accumulation dtype. Every reduction runs along a row, so the bits of
a row don't depend on which block it is in.

The usual shift by the row maximum loses a confident row: p_y - 1 cancels, and rounding x - max costs |x - max| units
in the last place of exp. Here one class per row, the pivot k, is left out, and the others are shifted by their own
maximum:

    m = max_{c != k} x_c,  e_c = exp(x_c - m),  R = sum_{c != k} e_c >= 1,  D = m - x_k
    D <= 0:  t = R exp(D),  L_k = log1p(t),             1 - p_k = t / (1 + t)
    D >  0:  u = exp(-D),   L_k = D + log(R + u),       1 - p_k = R / (R + u)

Nothing cancels, the terms that matter in R lie within log C of m, and D is one number per row, so the rounding of that
one subtraction is compensated (Knuth's TwoSum) at no cost that counts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class RowStatistics(NamedTuple):
    """Per row: loss of the pivot L_k, lse, lse - shift, p_k, 1 - p_k, and the factor that turns e_c into p_c."""

    loss: Array
    lse: Array
    rise: Array
    p: Array
    q: Array
    scale: Array


def two_diff(a: Array, b: Array) -> tuple[Array, Array]:
    """``a - b`` rounded, and what the rounding dropped (Knuth, TAOCP vol. 2, 4.2.2); 0 where it is not finite."""
    high = a - b
    back = high - a
    low = (a - (high - back)) - (b + back)
    return high, np.where(np.isfinite(low), low, 0)


def pivot_statistics(block: Array, pivot: Array) -> RowStatistics:
    """Statistics of the rows of ``block``, which is overwritten with e (0 at the pivot)."""
    rows = np.arange(len(block))
    x_k = block[rows, pivot]
    block[rows, pivot] = -np.inf
    top = block.max(axis=1)
    # Without any other class (C = 1, or all of them -inf) the pivot is its own shift, so that D = 0 and R = 0; a row of
    # only -inf becomes NaN by -inf - -inf, and so does one with +inf.
    shift = np.where(np.isneginf(top), x_k, top)
    block -= shift[:, None]
    np.exp(block, out=block)
    return finish(shift, x_k, block.sum(axis=1))


def finish(shift: Array, x_k: Array, rest: Array) -> RowStatistics:
    """The statistics from the shift, the pivot's logit and R. A logit of +inf is NaN; a finite loss is no answer."""
    rest = np.where(np.isposinf(x_k), np.nan, rest)
    gap, dropped = two_diff(shift, x_k)
    far = gap > 0
    down = np.minimum(gap, 0)
    # exp(gap) is subnormal before rest * exp(gap) is: take the two halves in turn.
    half = np.exp(down / 2)
    deep = down < (-60 if down.dtype == np.float32 else -600)
    step = np.where(deep, half * half, np.exp(down))
    t = np.where(deep, (rest * half) * half, rest * step) * (1 + dropped)
    u = np.exp(-np.maximum(gap, 0))
    total = rest + u
    log_total = np.log(np.where(far, total, 1))
    near_loss = np.log1p(t)
    near_norm = 1 + t
    return RowStatistics(
        loss=np.where(far, gap + log_total, near_loss),
        lse=np.where(far, shift + log_total, x_k + near_loss),
        rise=np.where(far, log_total, near_loss - gap),
        p=np.where(far, u / total, 1 / near_norm),
        q=np.where(far, rest / total, t / near_norm),
        scale=np.where(far, 1 / total, step / near_norm),
    )


def times(coefficient: Array | float, value: Array) -> Array:
    """``coefficient * value`` with 0 * inf = 0: what has no weight adds nothing. NaN stays NaN."""
    product = coefficient * value
    return np.where((np.equal(coefficient, 0)) & np.isinf(value), 0, product)


def weigh(values: Array, coefficients: Array) -> None:
    """``values *= coefficients`` for whole rows, where a coefficient of 0 adds nothing even to an infinite value."""
    values *= coefficients
    dead = coefficients == 0
    if dead.any():
        np.copyto(values, 0, where=dead)


def cap(block: Array, softcap: float, slope: Array | None) -> None:
    """Replace the block by a tanh(x / a) and fill ``slope`` with its derivative, sech^2, free of cancellation."""
    block /= softcap
    if slope is not None:
        # sech^2(y) = 4 w / (1 + w)^2 with w = exp(-2 |y|); 1 - tanh^2 would cancel for large y.
        np.abs(block, out=slope)
        slope *= -2
        np.exp(slope, out=slope)
        slope /= np.square(1 + slope)
        slope *= 4
    np.tanh(block, out=block)
    block *= softcap
