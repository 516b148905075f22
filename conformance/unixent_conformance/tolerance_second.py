"""The truth of second derivatives: how each gradient changes where its arguments move, from the formulas.

Let x move by d and probabilities q by e. With d' = sech^2(x/a) d (d without a softcap), k = sum_j p_j d'_j,
T = sum_j t_j and dt = w (1 - s) e, the gradient of a position's loss, v sech^2 f with f = p_c T - t_c + 2 z lse p_c,
changes by

    v [ sech^2 ( T p_c (d'_c - k) + p_c sum_j dt_j - dt_c + 2 z (k p_c + lse p_c (d'_c - k)) ) + (d sech^2) f ]
    d sech^2 = -(2/a) tanh(x/a) sech^2(x/a) d

and that of q, v w (1 - s) L, by v w (1 - s) (k - d'_c). Reduction and upstream gradient do not depend on x: they scale.
For a fused linear call x = h W^T + b moves by dh W^T + h dW^T + db, and its gradients G W, G^T h and sum_n G by

    dG W + G dW        dG^T h + G^T dh        sum_n dG

No accuracy is promised of second derivatives, and an implementation may get them from operations that its framework
differentiates: the bound is `ROOM` times what a gradient may be off by, relative to the terms' magnitudes, with every
subtraction above an addition. What is dropped, held constant or counted twice is off by the whole of a term.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixent_conformance import oracle, oracle_linear, tolerance
from unixent_conformance.cases.model import Call
from unixent_conformance.oracle import Array, Reduced, Rows
from unixent_conformance.oracle_linear import LinearRows
from unixent_conformance.tolerance import Estimate, Format

ROOM = 4


@dataclass(frozen=True)
class Change:
    """A derivative along a direction, (N, C), and the magnitudes of its terms."""

    value: Array
    magnitude: Array


def of_logits(rows: Rows, reduced: Reduced, call: Call) -> dict[str, Estimate]:
    """The change of the gradient of logits, and of probabilities where they are the target, along the directions of
    `call`."""
    along = {name: _rows(rows, direction) for name, direction in call.directions().items()}
    found = changes(rows, along["logits"], along.get("target"), call.options.get("softcap"))
    relative = _relative(rows, reduced, call.acc_dtype)
    return {name: _estimate(rows, reduced, change, call, relative) for name, change in found.items()}


def changes(rows: Rows, moved: Array, turned: Array | None, softcap: float | None) -> dict[str, Change]:
    """The change of each position's own gradients, before reduction and upstream gradient."""
    p, t, v, z = rows.probability, rows.coefficient, rows.counted[:, None], rows.z_loss
    lse, size = rows.lse[:, None], (abs(rows.peak) + rows.spread)[:, None]
    with np.errstate(all="ignore"):
        d = rows.slope * moved
        mean, most = (p * d).sum(axis=1, keepdims=True), (p * abs(d)).sum(axis=1, keepdims=True)
        own, room = p * (d - mean), p * (abs(d) + most)
        flow, flows = t.sum(axis=1, keepdims=True) * own, abs(t).sum(axis=1, keepdims=True) * room
        gradient = p * rows.others - t * rows.complement
        if z:
            flow, flows = flow + 2 * z * (mean * p + lse * own), flows + 2 * z * (most * p + size * room)
            gradient = gradient + 2 * z * lse * p
        if turned is not None:
            dt = rows.target_factor * turned
            flow = flow + p * dt.sum(axis=1, keepdims=True) - dt
            flows = flows + p * abs(dt).sum(axis=1, keepdims=True) + abs(dt)
        value, magnitude = v * rows.slope * flow, abs(v) * rows.slope * flows
        if softcap is not None:
            bend = -2 * rows.logits / np.longdouble(softcap) ** 2 * rows.slope * moved
            value, magnitude = value + v * bend * gradient, magnitude + abs(bend) * rows.gradient_magnitudes()
        found = {"logits": Change(_settled(rows, value), _settled(rows, magnitude))}
        if turned is not None:
            factor = v * rows.target_factor
            found["target"] = Change(_settled(rows, factor * (mean - d)), _settled(rows, abs(factor) * (most + abs(d))))
        return found


def of_linear(call: Call, seen: Callable[[Rows], Rows] = lambda rows: rows) -> dict[str, Estimate]:
    """The same for hidden, classifier, bias and probabilities of a fused linear call; `seen` may change the rows' error
    model."""
    found, along = oracle_linear.solve(call), call.directions()
    found = replace(found, rows=seen(found.rows))
    rows, reduced = found.rows, oracle_linear.reduce(found, call)
    silent = (rows.counted == 0) & ~rows.lost
    hidden = np.where(silent[:, None], 0, along["hidden"].reshape(found.hidden.shape).astype(np.longdouble))
    classifier = along["classifier"].astype(np.longdouble)
    bias = along.get("bias", np.zeros(1)).astype(np.longdouble)
    with np.errstate(all="ignore"):
        moved = hidden @ found.classifier.T + found.hidden @ classifier.T + bias
        turned = _rows(rows, along["target"]) if "target" in along else None
        each = changes(rows, moved, turned, call.options.get("softcap"))
        # What a logit's own roundings are, and those of the sums over features, classes and positions that follow.
        sums = sum(found.hidden.shape) + len(found.classifier)
        relative = _relative(rows, reduced, call.acc_dtype)
        relative = relative + tolerance.roundoff(call.acc_dtype) * sums * (ROOM + found.magnitude.max(initial=0))
        own = {name: _estimate(rows, reduced, change, call, relative, flat=True) for name, change in each.items()}
        upstream = None if call.upstream is None else np.asarray(call.upstream)
        first = oracle_linear.logits_gradient(found, reduced, upstream)
        firsts = abs(_flat(rows, oracle.gradient(rows, reduced, rows.gradient_magnitudes(), upstream)) * relative)
        turning = LinearRows(rows, hidden, classifier, found.magnitude)
        estimates = {}
        for name in call.differentiable():
            if name == "target":
                shape = along[name].shape
                estimates[name] = Estimate(own[name].value.reshape(shape), own[name].bound.reshape(shape))
                continue
            value = oracle_linear.through(found, own["logits"].value, name)
            bound = oracle_linear.through(_positive(found), own["logits"].bound, name)
            if name != "bias":
                value = value + oracle_linear.through(turning, first, name)
                bound = bound + oracle_linear.through(_positive(turning), firsts, name)
            estimates[name] = Estimate(value, bound)
        return estimates


def _relative(rows: Rows, reduced: Reduced, acc_dtype: str) -> Array:
    gap = np.where(np.isfinite(rows.gap), rows.gap, 0)
    factor = 16 + 2 * gap + 2 * np.log2(max(rows.classes, 1))
    if rows.steepness.any():
        factor = factor + tolerance.SOFTCAP_ROUNDINGS * (1 + 2 * abs(rows.logits).max(axis=1, keepdims=True))
        factor = factor + 4 * rows.steepness
    divided = tolerance.denominator_error(rows, reduced, acc_dtype)
    return np.asarray(ROOM * tolerance.roundoff(acc_dtype) * factor + divided)


def _estimate(
    rows: Rows, reduced: Reduced, change: Change, call: Call, relative: Array, flat: bool = False
) -> Estimate:
    upstream = None if call.upstream is None else np.asarray(call.upstream)
    tiny = Format.of(call.acc_dtype).smallest_normal
    with np.errstate(all="ignore"):
        room = np.where(change.magnitude == 0, 0, change.magnitude * relative + tiny)
    value = oracle.gradient(rows, reduced, change.value, upstream)
    bound = abs(oracle.gradient(rows, reduced, room, upstream))
    return Estimate(_flat(rows, value), _flat(rows, bound)) if flat else Estimate(value, bound)


def _settled(rows: Rows, values: Array) -> Array:
    """Exactly 0 where nothing counts, NaN where nothing can be known."""
    values = np.where((rows.counted == 0)[:, None], 0, values)
    return np.where(rows.lost[:, None], np.nan, values)


def _rows(rows: Rows, array: Any) -> Array:
    return np.moveaxis(np.asarray(array), rows.axis, -1).astype(np.longdouble).reshape(-1, rows.classes)


def _flat(rows: Rows, array: Array) -> Array:
    return np.asarray(array).reshape(len(rows.counted), rows.classes)


def _positive(found: LinearRows) -> LinearRows:
    return LinearRows(found.rows, abs(found.hidden), abs(found.classifier), found.magnitude)
