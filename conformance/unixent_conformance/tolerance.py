"""The error model: how far an honest implementation may be from the truth, entry by entry.

u is the unit roundoff of the accumulation dtype (float32 for half precision inputs), C the number of classes, N of
positions, m the row maximum. Every bound is the promise

    |l^ - l| <= (8 + 2 log2 C) u |l|                      a loss per position
    |g^ - g| <= (16 + 2 |x_c - m| + 2 log2 C) u |g|       an entry of the gradient with respect to the logits

with, where terms of either sign are added, |l| and |g| replaced by the sum of the terms' magnitudes (the oracle gives
those), and one rounding to the dtype of the result. Where the numbers come from:

* exp and log are good to an ulp or so (2u); a difference x_c - m costs u |x_c - m| in the exponent, which for the
  classes that matter to a sum of exponentials is at most u ln C on average, since sum p_c (m - x_c) <= ln C; adding C
  terms in a tree costs u log2 C. A confident row has no dominant class but its own, and keeps the bound only if its
  exponentials are taken relative to the largest of the *other* classes. Together, with a weight, a mask and a
  division: 8 + 2 log2 C.
* An entry of the gradient is one such exponential, so its own u |x_c - m| stays, twice, as room for splitting it.
* Adding N positions in a tree: u log2 N, and twice that as room for blocks and threads.
* A denominator is a sum of N products: (3 + 2 log2 N) u of the sum of its magnitudes.
* A softcap a tanh(x/a) is a division (u), a tanh good to two ulp or so (4u) and a product (u), each relative to x'.
* Products that fall below the smallest normal number of the accumulation dtype may lose everything: many devices
  flush such numbers to zero. This floor is of order 1e-38 in float32, below anything a half precision result can show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unixent_conformance import oracle
from unixent_conformance.oracle import Array, Reduced, Rows

# The softcap's roundings with room for a tanh of four ulp, in u relative to x'.
SOFTCAP_ROUNDINGS = 10


@dataclass(frozen=True)
class Format:
    """What a floating dtype can hold."""

    roundoff: float
    smallest_normal: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, dtype: str) -> Format:
        return FORMATS[dtype]


def _format(bits: int, least: int, greatest: int) -> Format:
    return Format(2.0**-bits, 2.0**least, math.ldexp(1.0, least - bits + 1), (2.0 - 2.0 ** (1 - bits)) * 2.0**greatest)


FORMATS = {
    "float16": _format(11, -14, 15),
    "bfloat16": _format(8, -126, 127),
    "float32": _format(24, -126, 127),
    "float64": _format(53, -1022, 1023),
}


@dataclass(frozen=True)
class Estimate:
    """The exact value, and how far from it a result may be before its last rounding."""

    value: Array
    bound: Array


def roundoff(acc_dtype: str) -> float:
    """u, and the oracle's own where it is no wider than the accumulation (a longdouble that is a float64)."""
    own = oracle.UNIT_ROUNDOFF
    u = Format.of(acc_dtype).roundoff
    return u if own < u / 64 else u + own


def loss(rows: Rows, reduced: Reduced, reduction: str, acc_dtype: str) -> Estimate:
    """Bound of the value under a reduction."""
    bound = position_bounds(rows, acc_dtype)
    if reduction == "none":
        return Estimate(reduced.value, bound.reshape(rows.positions))
    total = numerator(rows, reduced, acc_dtype)
    if reduction == "sum":
        return total
    if reduced.empty:
        return Estimate(reduced.value, np.zeros_like(reduced.value))
    with np.errstate(all="ignore"):
        # q = n/d: dq/q = dn/n - dd/d, one rounding for the quotient, one for a normalizer given as a Python float.
        relative = denominator_error(rows, reduced, acc_dtype) + 2 * roundoff(acc_dtype)
        return Estimate(reduced.value, total.bound / abs(reduced.denominator) + abs(reduced.value) * relative)


def numerator(rows: Rows, reduced: Reduced, acc_dtype: str) -> Estimate:
    """Bound of the summed losses: the terms' own bounds, and a tree of N additions."""
    with np.errstate(all="ignore"):
        adding = 2 * _log2(len(rows.counted)) * roundoff(acc_dtype) * rows.loss_magnitudes().sum()
        return Estimate(reduced.numerator, position_bounds(rows, acc_dtype).sum() + adding)


def denominator(rows: Rows, reduced: Reduced, acc_dtype: str) -> Estimate:
    """Bound of the summed token weights."""
    steps = 3 + 2 * _log2(len(rows.counted))
    return Estimate(reduced.denominator, steps * roundoff(acc_dtype) * abs(rows.denominators).sum())


def denominator_error(rows: Rows, reduced: Reduced, acc_dtype: str) -> Array:
    """Relative error of what a mean is divided by; 0 where nothing is, and for a normalizer, which is given."""
    own = denominator(rows, reduced, acc_dtype)
    return np.asarray(own.bound / abs(reduced.denominator) if reduced.divided else 0.0)


def position_bounds(rows: Rows, acc_dtype: str) -> Array:
    """(8 + 2 log2 C) u of the terms' magnitudes, and what the capped logits' own rounding moves: |dl/dx'| |dx'|."""
    u, tiny = roundoff(acc_dtype), Format.of(acc_dtype).smallest_normal
    with np.errstate(all="ignore"):
        bound = (8 + 2 * _log2(rows.classes)) * u * rows.loss_magnitudes()
        if rows.steepness.any():
            flow = _times(rows.gradient_magnitudes(), abs(rows.logits))
            bound = bound + SOFTCAP_ROUNDINGS * u * flow.sum(axis=1)
        # The rounding of lse itself, squared, where lse is near 0.
        bound = bound + rows.z_loss * abs(rows.counted) * (8 * u * (abs(rows.peak) + rows.spread)) ** 2
        # Every class may lose a term below the smallest normal number, in r and in its share of the loss.
        weight = abs(rows.coefficient).sum(axis=1)
        bound = bound + tiny * (1 + abs(rows.counted)) * (1 + rows.classes * (1 + weight))
        return np.where(rows.counted == 0, 0, bound)


def logits_gradient(rows: Rows, reduced: Reduced, upstream: Array | None, acc_dtype: str) -> Estimate:
    """(16 + 2 |x_c - m| + 2 log2 C) u of the entry's terms, the cap's roundings, the scale's and the floor."""
    u, tiny = roundoff(acc_dtype), Format.of(acc_dtype).smallest_normal
    gap = np.where(np.isfinite(rows.gap), rows.gap, 0)
    with np.errstate(all="ignore"):
        factor = 16 + 2 * gap + 2 * _log2(rows.classes)
        if rows.steepness.any():
            # p_c moves with its own x' and with the others'; the slope sech^2 moves with twice its argument.
            farthest = np.where(np.isfinite(rows.logits), abs(rows.logits), 0).max(axis=1, keepdims=True)
            steep = np.where(np.isfinite(rows.steepness), rows.steepness, 0)
            factor = factor + SOFTCAP_ROUNDINGS * (1 + 2 * farthest) + 4 * steep
        relative = u * (factor + 2) + denominator_error(rows, reduced, acc_dtype)
        per_position = _times(rows.gradient_magnitudes() * rows.slope, relative)
        weight = abs(rows.coefficient).sum(axis=1, keepdims=True) + rows.z_loss * abs(rows.lse)[:, None]
        floor = tiny * (1 + abs(rows.counted)[:, None]) * (1 + rows.classes * weight)
        value = oracle.gradient(rows, reduced, rows.logits_gradients(), upstream)
        bound = oracle.gradient(rows, reduced, per_position + floor, _absolute(upstream))
        return Estimate(value, abs(bound) + np.where(value == 0, 0, tiny))


def target_gradient(rows: Rows, reduced: Reduced, upstream: Array | None, acc_dtype: str) -> Estimate:
    """dl/dq_c = v w_c (1 - s) L_c: the bound of a loss, per class, and what a mean's denominator adds."""
    u, tiny = roundoff(acc_dtype), Format.of(acc_dtype).smallest_normal
    with np.errstate(all="ignore"):
        exact = rows.target_gradients()
        relative = (8 + 2 * _log2(rows.classes) + 4) * u + denominator_error(rows, reduced, acc_dtype)
        bound = _times(rows.target_magnitudes(), relative)
        if rows.steepness.any():
            moved = abs(rows.logits) + (rows.probability * abs(rows.logits)).sum(axis=1, keepdims=True)
            bound = bound + SOFTCAP_ROUNDINGS * u * abs(rows.counted)[:, None] * _times(abs(rows.target_factor), moved)
        floor = tiny * rows.classes * (1 + abs(rows.counted)[:, None] * abs(rows.target_factor))
        value = oracle.gradient(rows, reduced, exact, upstream)
        return Estimate(value, abs(oracle.gradient(rows, reduced, bound + floor, _absolute(upstream))))


@dataclass(frozen=True)
class Comparison:
    """The worst entry of a comparison; `units` is its error over its bound, at most 1 where all is well."""

    units: float
    index: tuple[int, ...]
    got: float
    expected: float
    bound: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.units <= 1


def compare(got: Array, estimate: Estimate, dtype: str) -> Comparison:
    """Every entry against its own bound plus one rounding to `dtype`. NaN must be NaN, infinity the same infinity;
    a finite truth may be an infinity only where rounding to the dtype makes it one."""
    form = Format.of(dtype)
    wide = got.astype(np.longdouble)
    value = np.broadcast_to(estimate.value, wide.shape).astype(np.longdouble)
    with np.errstate(all="ignore"):
        bound = np.broadcast_to(estimate.bound, wide.shape).astype(np.longdouble)
        reach = abs(value) + bound
        bound = bound + rounding(reach, dtype)
        error = abs(wide - value)
        units = np.where(error == 0, 0, error / bound)
        beyond = reach >= form.largest * (1 + form.roundoff / 2)  # half a step past the largest number
        overflow = np.isinf(wide) & (np.sign(wide) == np.sign(value)) & beyond
        finite = np.isfinite(value)
        units = np.where(finite & overflow, 0, units)
        units = np.where(finite & ~overflow & ~np.isfinite(wide), np.inf, units)
        units = np.where(np.isnan(value), np.where(np.isnan(wide), 0, np.inf), units)
        units = np.where(np.isinf(value), np.where(wide == value, 0, np.inf), units)
        # Nothing comes from nothing: an exact 0 with no bound of its own (a row that does not count) is exactly 0.
        units = np.where((value == 0) & (np.broadcast_to(estimate.bound, wide.shape) == 0) & (wide != 0), np.inf, units)
    if not units.size:
        return Comparison(0.0, (), 0.0, 0.0, 0.0)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(units)), units.shape))
    return Comparison(float(units[index]), index, float(wide[index]), float(value[index]), float(bound[index]))


def rounding(value: Array, dtype: str) -> Array:
    """How far rounding to a dtype may move a value: half an ulp, half the least subnormal number at the least."""
    form = Format.of(dtype)
    return np.asarray(np.maximum(form.roundoff * abs(value), form.smallest / 2))


def _log2(count: int) -> float:
    return math.log2(max(count, 1))


def _times(magnitude: Array, factor: Any) -> Array:
    """magnitude * factor with nothing from a magnitude of 0."""
    return np.where(magnitude == 0, 0, magnitude * factor)


def _absolute(upstream: Array | None) -> Array | None:
    return None if upstream is None else abs(upstream)
