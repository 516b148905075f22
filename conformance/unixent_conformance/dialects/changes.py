"""What the dialects change in a call, or in its positions as the oracle has solved them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from unixent_conformance.dialects.model import classes_of, needs_target
from unixent_conformance.dialects.rows import InfiniteLoss, NaNGradients, NaNValue, NoTarget, become
from unixent_conformance.model import Array, Call
from unixent_conformance.oracle import Rows, sum_of_rest


def with_options(call: Call, **options: Any) -> Call:
    return replace(call, options={**call.options, **options})


def indices_of(rows: Rows, call: Call) -> tuple[Array, Array, Array]:
    """Each position's class, whether it is ignored, whether it lies outside the classes."""
    y = np.asarray(call.target).reshape(-1)
    ignored = y == call.options.get("ignore_index", -100)
    return y, ignored, ~ignored & ((y < 0) | (y >= rows.classes))


def with_coefs(rows: Rows, t: Array) -> Rows:
    return become(Rows, rows, coefs=t, rest_coefs=sum_of_rest(t))


def exists(rows: Rows) -> Array:
    """Which entries of a row are classes; the rest is padding."""
    return np.asarray(np.arange(rows.logits.shape[1]) < rows.classes)


def weights_of(rows: Rows, call: Call) -> Array:
    """Class weights, 0 where there is no class."""
    w = np.ones(rows.classes) if call.weight is None else np.asarray(call.weight)
    return np.pad(w.astype(np.longdouble), (0, rows.logits.shape[1] - rows.classes))


def one_hot(rows: Rows, call: Call) -> Array:
    return np.asarray(np.arange(rows.logits.shape[1]) == np.asarray(call.target).reshape(-1, 1)).astype(np.longdouble)


def over_others(rows: Rows, call: Call) -> Rows:
    s, hot = np.longdouble(call.options["label_smoothing"]), one_hot(rows, call)
    return with_coefs(rows, weights_of(rows, call) * ((1 - s) * hot + s / max(rows.classes - 1, 1) * (1 - hot)))


def weight_of_target(rows: Rows, call: Call) -> Rows:
    s, hot = np.longdouble(call.options["label_smoothing"]), one_hot(rows, call)
    own = (hot * weights_of(rows, call)).sum(axis=1, keepdims=True)
    return with_coefs(rows, own * ((1 - s) * hot + s / rows.classes))


def denominators(each: Callable[[Rows, Call], Any]) -> Callable[[Rows, Call], Rows]:
    def change(rows: Rows, call: Call) -> Rows:
        return become(
            Rows, rows, denominators=np.broadcast_to(each(rows, call), rows.position_weight.shape).astype(np.longdouble)
        )

    return change


def target_sum(rows: Rows, call: Call) -> Array:
    return np.asarray(rows.position_weight * rows.coefs.sum(axis=1))


def first_axis(rows: Rows, call: Call) -> Any:
    return np.longdouble(rows.positions[0] if rows.positions else 1) / max(len(rows.position_weight), 1)


def unignored(call: Call) -> Call:
    return with_options(call, ignore_index=-(2**62))


def retarget(change: Callable[[Array, int], Array]) -> Callable[[Call], Call]:
    def changed(call: Call) -> Call:
        y, classes = np.asarray(call.target), classes_of(call)
        ignored = y == call.options.get("ignore_index", -100)
        wide = y.astype(object)  # no dtype holds both signed and unsigned
        moved = np.where(ignored, wide, change(wide, classes))
        return replace(call, target=np.clip(moved, -(2**63), 2**63 - 1).astype(np.int64))

    return changed


def out_of_range_ignored(in_mean: bool) -> Callable[[Rows, Call], Rows]:
    def change(rows: Rows, call: Call) -> Rows:
        out_of_range = rows.nan_rows & np.isfinite(rows.lse_minus_shift) & (rows.position_weight != 0)
        return become(
            Rows,
            rows,
            nan_rows=rows.nan_rows & ~out_of_range,
            position_weight=np.where(out_of_range, 0, rows.position_weight),
            denominators=np.where(out_of_range, float(in_mean), rows.denominators),
        )

    return change


def out_of_range_without_target(rows: Rows, call: Call) -> Rows:
    """The one-hot row of an index out of range is all zeros: the share of smoothing is left, and the z-loss."""
    _, _, out_of_range = indices_of(rows, call)
    s = np.longdouble(call.options.get("label_smoothing", 0.0))
    smoothing = np.broadcast_to(weights_of(rows, call) * s / rows.classes, rows.coefs.shape)
    rows = with_coefs(rows, np.where(out_of_range[:, None], smoothing, rows.coefs))
    return become(Rows, rows, nan_rows=rows.nan_rows & ~(out_of_range & np.isfinite(rows.lse_minus_shift)))


def zero_meets_infinity(rows: Rows) -> Array:
    with np.errstate(all="ignore"):
        meets = exists(rows) & (rows.coefs == 0) & np.isinf(rows.nll)
        return np.asarray(meets.any(axis=1) & (rows.position_weight != 0))


def zero_times_infinity(rows: Rows, call: Call) -> Rows:
    return become(NaNValue, rows, nan_value=zero_meets_infinity(rows))


def zero_at_target_times_infinity(rows: Rows, call: Call) -> Rows:
    elsewhere = one_hot(rows, call) == 0
    return become(NaNValue, rows, nan_value=zero_meets_infinity(with_coefs(rows, np.where(elsewhere, 1, rows.coefs))))


def every_row(rows: Rows, call: Call) -> Rows:
    """All that needs no target of all positions; what needs one of those that have a class for it."""
    _, ignored, out_of_range = indices_of(rows, call)
    unknown = (ignored | out_of_range) & needs_target(call)
    nan_rows = np.where(unknown, rows.nan_rows, np.isnan(rows.lse_minus_shift))
    return become(Rows, rows, nan_rows=nan_rows, position_weight=np.where(unknown, rows.position_weight, 1))


def out_of_range_nan_value(rows: Rows, call: Call) -> Rows:
    """The value is NaN, the gradient that of lse alone."""
    _, _, out_of_range = indices_of(rows, call)
    rest_coefs = np.where(out_of_range[:, None], 1, rows.rest_coefs)
    rows = become(Rows, rows, coefs=np.where(out_of_range[:, None], 0, rows.coefs), rest_coefs=rest_coefs)
    return become(NaNValue, become(Rows, rows, nan_rows=rows.nan_rows & ~out_of_range), nan_value=out_of_range)


def out_of_range_costs_nothing(rows: Rows, call: Call) -> Rows:
    """The value is 0, the gradient that of lse alone."""
    return become(NoTarget, out_of_range_nan_value(rows, call))


def nan_value_of_inactive(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        terms = np.where(rows.coefs == 0, 0, rows.nll).sum(axis=1)
        return become(NaNValue, rows, nan_value=(rows.position_weight == 0) & ~np.isfinite(rows.lse + terms))


def z_loss_by_count(rows: Rows, call: Call) -> Rows:
    """The denominator of the mean is put right for the z-loss by what it is multiplied with."""
    counted = (rows.position_weight != 0).sum()
    return become(Rows, rows, z_loss=float(rows.z_loss * rows.denominators.sum() / max(counted, 1)))


def clipped_logits(rows: Rows, call: Call) -> Rows:
    """x_c - m is -64 at the least; -inf too."""
    with np.errstate(all="ignore"):
        logits = np.where(exists(rows), np.maximum(rows.logits, rows.shift[:, None] - 64), -np.inf)
        gap = rows.shift[:, None] - logits
        pivot = np.arange(gap.shape[1]) == np.argmax(rows.logits, axis=1)[:, None]
        terms = np.exp(-gap)
        rest = np.where(pivot, terms - 1, terms).sum(axis=1)
        total = (1 + rest)[:, None]
        one_minus_p = np.where(pivot, rest[:, None], total - terms) / total
        solved = {"lse_minus_shift": np.log1p(rest), "p": terms / total, "one_minus_p": one_minus_p}
    return become(Rows, rows, logits=logits, gap=gap, **solved)


def infinite_loss(rows: Rows, call: Call) -> Rows:
    above = (rows.logits == np.inf).any(axis=1) & ~np.isnan(rows.logits).any(axis=1) & (rows.position_weight != 0)
    return become(InfiniteLoss, become(Rows, rows, nan_rows=rows.nan_rows & ~above), above=above)


def below(rows: Rows) -> Array:
    return np.asarray((exists(rows) & (rows.logits == -np.inf)).any(axis=1) & (rows.position_weight != 0))


def nan_of_inactive(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        nll = np.where(exists(rows), rows.nll, 0).sum(axis=1)
        bad = (rows.position_weight == 0) & ~np.isfinite(rows.lse + nll)
    return become(Rows, rows, nan_rows=rows.nan_rows | bad, position_weight=np.where(bad, 1, rows.position_weight))


def nan_gradients(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        nan_gradient = (rows.position_weight == 0) & ~np.isfinite(rows.lse)
    return become(NaNGradients, rows, nan_rows=rows.nan_rows | nan_gradient, nan_gradient=nan_gradient)
