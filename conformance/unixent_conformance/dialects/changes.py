"""What the dialects change in a call, or in its positions as the oracle has solved them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from unixent_conformance.cases.model import Call
from unixent_conformance.dialects.rows import InfiniteLoss, NaNGradients, NoTarget, Poisoned, become
from unixent_conformance.oracle import Array, Rows, sum_of_others


def with_options(call: Call, **options: Any) -> Call:
    return replace(call, options={**call.options, **options})


def indices_of(rows: Rows, call: Call) -> tuple[Array, Array, Array]:
    """Each position's class, whether it is ignored, whether it lies outside the classes."""
    y = np.asarray(call.target).reshape(-1)
    ignored = y == call.options.get("ignore_index", -100)
    return y, ignored, ~ignored & ((y < 0) | (y >= rows.classes))


def coefficients(rows: Rows, t: Array) -> Rows:
    return become(Rows, rows, coefficient=t, others=sum_of_others(t))


def weights_of(rows: Rows, call: Call) -> Array:
    return np.ones(rows.classes) if call.weight is None else np.asarray(call.weight).astype(np.longdouble)


def one_hot(rows: Rows, call: Call) -> Array:
    return np.asarray(np.arange(rows.classes) == np.asarray(call.target).reshape(-1, 1)).astype(np.longdouble)


def over_others(rows: Rows, call: Call) -> Rows:
    s, hot = np.longdouble(call.options["label_smoothing"]), one_hot(rows, call)
    return coefficients(rows, weights_of(rows, call) * ((1 - s) * hot + s / max(rows.classes - 1, 1) * (1 - hot)))


def weight_of_target(rows: Rows, call: Call) -> Rows:
    s, hot = np.longdouble(call.options["label_smoothing"]), one_hot(rows, call)
    own = (hot * weights_of(rows, call)).sum(axis=1, keepdims=True)
    return coefficients(rows, own * ((1 - s) * hot + s / rows.classes))


def denominators(each: Callable[[Rows, Call], Any]) -> Callable[[Rows, Call], Rows]:
    def change(rows: Rows, call: Call) -> Rows:
        return become(
            Rows, rows, denominators=np.broadcast_to(each(rows, call), rows.counted.shape).astype(np.longdouble)
        )

    return change


def target_mass(rows: Rows, call: Call) -> Array:
    return np.asarray(rows.counted * rows.coefficient.sum(axis=1))


def first_axis(rows: Rows, call: Call) -> Any:
    return np.longdouble(rows.positions[0] if rows.positions else 1) / max(len(rows.counted), 1)


def unignored(call: Call) -> Call:
    return with_options(call, ignore_index=-(2**62))


def retarget(change: Callable[[Array, int], Array]) -> Callable[[Call], Call]:
    def changed(call: Call) -> Call:
        y, classes = np.asarray(call.target), call.logits.shape[call.options.get("axis", -1)]
        keep = y == call.options.get("ignore_index", -100)
        wide = y.astype(object)  # no dtype holds both signed and unsigned
        moved = np.where(keep, wide, change(wide, classes))
        return replace(call, target=np.clip(moved, -(2**63), 2**63 - 1).astype(np.int64))

    return changed


def stray_silent(counted: bool) -> Callable[[Rows, Call], Rows]:
    def change(rows: Rows, call: Call) -> Rows:
        stray = rows.lost & np.isfinite(rows.spread) & (rows.counted != 0)
        return become(
            Rows,
            rows,
            lost=rows.lost & ~stray,
            counted=np.where(stray, 0, rows.counted),
            denominators=np.where(stray, float(counted), rows.denominators),
        )

    return change


def stray_no_target(rows: Rows, call: Call) -> Rows:
    """The one-hot row of a stray index is all zeros: what smoothing spreads is left, and the z-loss."""
    _, _, stray = indices_of(rows, call)
    s = np.longdouble(call.options.get("label_smoothing", 0.0))
    spread = np.broadcast_to(weights_of(rows, call) * s / rows.classes, rows.coefficient.shape)
    rows = coefficients(rows, np.where(stray[:, None], spread, rows.coefficient))
    return become(Rows, rows, lost=rows.lost & ~(stray & np.isfinite(rows.spread)))


def zero_times_infinity(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        poisoned = ((rows.coefficient == 0) & np.isinf(rows.surprise)).any(axis=1) & (rows.counted != 0)
    return become(Poisoned, rows, poisoned=poisoned)


def stray_nan_value(rows: Rows, call: Call) -> Rows:
    """The value is NaN, the gradient that of lse alone."""
    _, _, stray = indices_of(rows, call)
    others = np.where(stray[:, None], 1, rows.others)
    rows = become(Rows, rows, coefficient=np.where(stray[:, None], 0, rows.coefficient), others=others)
    return become(Poisoned, become(Rows, rows, lost=rows.lost & ~stray), poisoned=stray)


def stray_costs_nothing(rows: Rows, call: Call) -> Rows:
    """The value is 0, the gradient that of lse alone."""
    return become(NoTarget, stray_nan_value(rows, call))


def nan_value_of_uncounted(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        terms = np.where(rows.coefficient == 0, 0, rows.surprise).sum(axis=1)
        return become(Poisoned, rows, poisoned=(rows.counted == 0) & ~np.isfinite(rows.lse + terms))


def infinite_loss(rows: Rows, call: Call) -> Rows:
    above = (rows.logits == np.inf).any(axis=1) & ~np.isnan(rows.logits).any(axis=1) & (rows.counted != 0)
    return become(InfiniteLoss, become(Rows, rows, lost=rows.lost & ~above), above=above)


def below(rows: Rows) -> Array:
    return np.asarray((rows.logits == -np.inf).any(axis=1) & (rows.counted != 0))


def poisoned_by_uncounted(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        bad = (rows.counted == 0) & ~np.isfinite(rows.lse + rows.surprise.sum(axis=1))
    return become(Rows, rows, lost=rows.lost | bad, counted=np.where(bad, 1, rows.counted))


def nan_gradients(rows: Rows, call: Call) -> Rows:
    with np.errstate(all="ignore"):
        spoiled = (rows.counted == 0) & ~np.isfinite(rows.lse)
    return become(NaNGradients, rows, lost=rows.lost | spoiled, spoiled=spoiled)
