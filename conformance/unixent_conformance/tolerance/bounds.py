"""The error model of logits: how far an honest implementation may be from the exact answer, entry by entry.

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
* lse itself is the logarithm of a sum S = 1 + r of C exponentials: 2u for them, u log2 C for the tree and u for the 1
  are relative to S, and so (3 + log2 C) u is absolute in log S, however near to 0 that is. z lse^2 and 2 z lse p have
  it beside what is relative to |m| + log S. (A sum without the maximum has less, as L has where the target holds it.)
* Adding N positions in a tree: u log2 N, and twice that as room for blocks and threads.
* A denominator is a sum of N products: (3 + 2 log2 N) u of the sum of its magnitudes.
* A softcap a tanh(x/a) is a division (u), a tanh good to two ulp or so (4u) and a product (u), each relative to x'.
* A scale and a temperature are numbers that are rounded (2u), a product and a division (2u), relative to x' too.
* Products that fall below the smallest normal number of the accumulation dtype may lose everything: many devices
  flush such numbers to zero. This floor is of order 1e-38 in float32, below anything a half precision result can show.
"""

from __future__ import annotations

import numpy as np

from unixent_conformance.model import Array
from unixent_conformance.oracle import Solution
from unixent_conformance.tolerance.formats import Estimate, Format, log2, roundoff, times

# The softcap's roundings with room for a tanh of four ulp, and those of scale and temperature, in u relative to x'.
SOFTCAP_ROUNDINGS, FACTOR_ROUNDINGS = 10, 4


def units_of(s: Solution) -> tuple[float, float]:
    """u and the smallest normal number of the accumulation dtype."""
    return roundoff(s.acc_dtype), Format.of(s.acc_dtype).smallest_normal


def loss(s: Solution) -> Estimate:
    """The value under its reduction."""
    if s.call.reduction == "none":
        return Estimate(s.reduced.value, position_bounds(s).reshape(s.rows.positions))
    total = numerator(s)
    if s.call.reduction == "sum":
        return total
    if s.reduced.empty:
        return Estimate(s.reduced.value, np.zeros_like(s.reduced.value))
    with np.errstate(all="ignore"):
        # q = n/d: dq/q = dn/n - dd/d, one rounding for the quotient, one for a normalizer given as a Python float.
        relative = denominator_error(s) + 2 * units_of(s)[0]
        return Estimate(s.reduced.value, total.bound / abs(s.reduced.denominator) + abs(s.reduced.value) * relative)


def numerator(s: Solution) -> Estimate:
    """The summed losses: the terms' own bounds, and a tree of N additions."""
    with np.errstate(all="ignore"):
        adding = 2 * log2(len(s.rows.position_weight)) * units_of(s)[0] * s.rows.loss_magnitudes().sum()
        return Estimate(s.reduced.numerator, position_bounds(s).sum() + adding)


def denominator(s: Solution) -> Estimate:
    """The summed token weights."""
    steps = 3 + 2 * log2(len(s.rows.position_weight))
    return Estimate(s.reduced.denominator, steps * units_of(s)[0] * abs(s.rows.denominators).sum())


def denominator_error(s: Solution) -> Array:
    """Relative error of what a mean is divided by; 0 where nothing is, and for a normalizer, which is given."""
    with np.errstate(all="ignore"):
        return np.asarray(denominator(s).bound / abs(s.reduced.denominator) if s.reduced.divided else 0.0)


def transform_roundings(s: Solution) -> int:
    """What each x' may be off by, in u relative to itself."""
    scale, softcap, temperature = transform(s)
    capped = SOFTCAP_ROUNDINGS if softcap is not None else 0
    return capped + (FACTOR_ROUNDINGS if (scale, temperature) != (1, 1) else 0)


def transform(s: Solution) -> tuple[float, float | None, float]:
    """scale, softcap and temperature of the call."""
    options = s.call.options
    return options.get("scale", 1.0), options.get("softcap"), options.get("temperature", 1.0)


def lse_rounding(s: Solution) -> float:
    """What lse may be off by where it is near 0."""
    return (3 + log2(s.rows.classes)) * units_of(s)[0]


def position_bounds(s: Solution) -> Array:
    """(8 + 2 log2 C) u of the terms' magnitudes, and what the roundings of x' move: |dl/dx'| |dx'|."""
    rows, (u, tiny) = s.rows, units_of(s)
    with np.errstate(all="ignore"):
        bound = (8 + 2 * log2(rows.classes)) * u * rows.loss_magnitudes() + u * rows.loss_roundings()
        if roundings := transform_roundings(s):
            moved = times(rows.gradient_magnitudes(), abs(rows.logits))
            bound = bound + roundings * u * moved.sum(axis=1)
        # What the rounding of lse itself does to lse^2 where lse is near 0.
        relative, absolute = 8 * u * (abs(rows.shift) + rows.lse_minus_shift), lse_rounding(s)
        moved_square = (relative + absolute) ** 2 + 2 * abs(rows.lse) * absolute
        bound = bound + rows.z_loss * abs(rows.position_weight) * moved_square
        # Every class may lose a term below the smallest normal number, in r and in its share of the loss.
        weight = abs(rows.coefs).sum(axis=1)
        bound = bound + tiny * (1 + abs(rows.position_weight)) * (1 + rows.classes * (1 + weight))
        return np.where(rows.position_weight == 0, 0, bound)


def logits_gradient(s: Solution) -> Estimate:
    """(16 + 2 |x_c - m| + 2 log2 C) u of the entry's terms, the roundings of x', the upstream's and the floor."""
    rows, (u, tiny) = s.rows, units_of(s)
    gap = np.where(np.isfinite(rows.gap), rows.gap, 0)
    with np.errstate(all="ignore"):
        factor = 16 + 2 * gap + 2 * log2(rows.classes)
        if roundings := transform_roundings(s):
            # p_c moves with its own x' and with the others'; sech^2 moves with twice its argument.
            farthest = np.where(np.isfinite(rows.logits), abs(rows.logits), 0).max(axis=1, keepdims=True)
            factor = factor + roundings * (1 + 2 * farthest) + 4 * rows.cap_ratio
        relative = u * (factor + 2) + denominator_error(s)
        per_position = times(rows.gradient_magnitudes() * rows.transform_grad, relative)
        per_position = per_position + (16 + 2 * log2(rows.classes)) * u * rows.gradient_roundings()
        if rows.z_loss:
            z_loss_grad = 2 * rows.z_loss * lse_rounding(s) * abs(rows.position_weight)[:, None]
            per_position = per_position + times(rows.p * rows.transform_grad, z_loss_grad)
        weight = abs(rows.coefs).sum(axis=1, keepdims=True) + rows.z_loss * abs(rows.lse)[:, None]
        floor = tiny * (1 + abs(rows.position_weight)[:, None]) * (1 + rows.classes * weight)
        floor = np.where(np.isneginf(rows.logits) & (rows.coefs == 0), 0, floor)
        value = s.gradient(rows.logits_gradients())
        return Estimate(value, abs(s.gradient(per_position + floor)) + np.where(value == 0, 0, tiny))


def target_gradient(s: Solution) -> Estimate:
    """dl/dq_c = v w_c (1 - s) L_c: the bound of a loss, per class, and what a mean's denominator adds."""
    rows, (u, tiny) = s.rows, units_of(s)
    with np.errstate(all="ignore"):
        relative = (8 + 2 * log2(rows.classes) + 4) * u + denominator_error(s)
        bound = times(rows.target_magnitudes(), relative)
        scale = abs(rows.position_weight)[:, None]
        if roundings := transform_roundings(s):
            moved = abs(rows.logits) + times(rows.p, abs(rows.logits)).sum(axis=1, keepdims=True)
            bound = bound + roundings * u * scale * times(abs(rows.target_coef), moved)
        floor = tiny * rows.classes * np.where(rows.target_coef == 0, 0, 1 + scale * abs(rows.target_coef))
        value = s.gradient(rows.target_gradients())
        # As for the logits: the last product, with what comes from upstream, may be flushed as well.
        return Estimate(value, abs(s.gradient(bound + floor)) + np.where(value == 0, 0, tiny))
