"""Second derivatives: how each gradient changes where its arguments move, from the formulas.

Let x move by d and probabilities q by e. With g = dx'/dx, d' = g d, k = sum_j p_j d'_j, T = sum_j t_j and
dt = w (1 - s) e, the gradient of a position's loss, v g f with f = p_c T - t_c + 2 z lse p_c, changes by

    v [ g ( T p_c (d'_c - k) + p_c sum_j dt_j - dt_c + 2 z (k p_c + lse p_c (d'_c - k)) ) + (dg) f ]
    dg = -2 (K/a) tanh(K x/a) g d       under a softcap a behind a scale K, of which a temperature makes tanh = T x'/a

and that of q, v w (1 - s) L, by v w (1 - s) (k - d'_c). Reduction and upstream gradient do not depend on x: they scale.
Of a statistic, f and its change are those of `oracle.statistics`.
For a fused linear call x = h W^T + b moves by dh W^T + h dW^T + db, and its gradients G W, G^T h and sum_n G by

    dG W + G dW        dG^T h + G^T dh        sum_n dG

No accuracy is promised of second derivatives, and an implementation may get them from operations that its framework
differentiates: the bound is `ROOM` times what a gradient may be off by, relative to the terms' magnitudes, with every
subtraction above an addition. What is dropped, held constant or counted twice is off by the whole of a term.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unixent_conformance.model import Array
from unixent_conformance.oracle import Linear, Rows, Solution, product
from unixent_conformance.oracle.statistics import second_derivative
from unixent_conformance.tolerance import bounds
from unixent_conformance.tolerance.formats import Estimate, log2

ROOM = 4


@dataclass(frozen=True)
class Change:
    """A derivative along a direction, (N, C), and the magnitudes of its terms."""

    value: Array
    magnitude: Array


def of_logits(s: Solution) -> dict[str, Estimate]:
    """The change of the gradient of logits, and of probabilities where they are the target, along the directions of
    the call."""
    along = {name: s.rows.from_shape(direction) for name, direction in s.call.directions().items()}
    relative = _relative(s)
    each = changes(s, along["logits"], along.get("target"))
    return {name: _estimate(s, change, relative) for name, change in each.items()}


def changes(s: Solution, moved: Array, target_moved: Array | None) -> dict[str, Change]:
    """The change of each position's own gradients, before reduction and upstream gradient."""
    rows, softcap = s.rows, bounds.transform(s)[1]
    if s.call.statistic:
        return {"logits": _statistic_change(s, moved)}
    p, t, v, z = rows.p, rows.coefs, rows.position_weight[:, None], rows.z_loss
    lse, lse_size = rows.lse[:, None], (abs(rows.shift) + rows.lse_minus_shift)[:, None]
    with np.errstate(all="ignore"):
        d = rows.transform_grad * moved
        mean, mean_size = (p * d).sum(axis=1, keepdims=True), (p * abs(d)).sum(axis=1, keepdims=True)
        dp, dp_size = p * (d - mean), p * (abs(d) + mean_size)
        value, size = t.sum(axis=1, keepdims=True) * dp, abs(t).sum(axis=1, keepdims=True) * dp_size
        if z:
            value, size = value + 2 * z * (mean * p + lse * dp), size + 2 * z * (mean_size * p + lse_size * dp_size)
        if target_moved is not None:
            dt = rows.target_coef * target_moved
            value = value + p * dt.sum(axis=1, keepdims=True) - dt
            size = size + p * abs(dt).sum(axis=1, keepdims=True) + abs(dt)
        value, size = v * rows.transform_grad * value, abs(v) * rows.transform_grad * size
        if softcap is not None:
            cap_change = _cap_change(s, moved)
            value, size = value + v * cap_change * _gradient(rows), size + abs(cap_change) * rows.gradient_magnitudes()
        each = {"logits": Change(rows.settled(value), rows.settled(size))}
        if target_moved is not None:
            factor = v * rows.target_coef
            size = abs(factor) * (mean_size + abs(d))
            each["target"] = Change(rows.settled(factor * (mean - d)), rows.settled(size))
        return each


def _statistic_change(s: Solution, moved: Array) -> Change:
    rows = s.rows
    with np.errstate(all="ignore"):
        grad, grad_size, value, size = second_derivative(rows, s.call, rows.transform_grad * moved)
        value, size = rows.transform_grad * value, rows.transform_grad * size
        if bounds.transform(s)[1] is not None:
            cap_change = _cap_change(s, moved)
            value, size = value + cap_change * grad, size + abs(cap_change) * grad_size
        return Change(rows.settled(value), rows.settled(size))


def _cap_change(s: Solution, moved: Array) -> Array:
    """dg."""
    scale, softcap, temperature = bounds.transform(s)
    curvature = np.longdouble(scale) * np.longdouble(temperature) / np.longdouble(softcap or 1) ** 2
    return np.asarray(-2 * curvature * product(s.rows.transform_grad, s.rows.logits) * moved)


def first(s: Solution) -> tuple[Array, Array]:
    """The gradients of the positions, before reduction and upstream gradient, and their terms' magnitudes."""
    rows = s.rows
    if not s.call.statistic:
        return rows.logits_gradients(), rows.gradient_magnitudes()
    grad, size = second_derivative(rows, s.call, np.zeros_like(rows.logits))[:2]
    return rows.settled(rows.transform_grad * grad), rows.settled(size)


def _gradient(rows: Rows) -> Array:
    """f: the gradient of the capped logits, for a weight of 1."""
    gradient = rows.p * rows.rest_coefs - rows.coefs * rows.one_minus_p
    return np.asarray(gradient + 2 * rows.z_loss * rows.lse[:, None] * rows.p if rows.z_loss else gradient)


def of_linear(s: Solution, linear: Linear) -> dict[str, Estimate]:
    """The same for hidden, classifier, bias and probabilities of a fused linear call."""
    rows, along = s.rows, s.call.directions()
    hidden = np.where(rows.inactive[:, None], 0, along["hidden"].reshape(linear.hidden.shape).astype(np.longdouble))
    moved = Linear(hidden, along["classifier"].astype(np.longdouble), linear.magnitude)
    with np.errstate(all="ignore"):
        logits = hidden @ linear.classifier.T + linear.hidden @ moved.classifier.T
        logits = logits + along.get("bias", np.zeros(1)).astype(np.longdouble)
        each = changes(s, logits, rows.from_shape(along["target"]) if "target" in along else None)
        relative = linear_relative(s, linear)
        own = {name: _estimate(s, change, relative) for name, change in each.items()}
        value, bound = (array.reshape(logits.shape) for array in (own["logits"].value, own["logits"].bound))
        gradient, gradient_size = map(s.gradient_rows, first(s))
        gradient_bound = abs(gradient_size * relative)
        estimates = {}
        for name in s.call.differentiable():
            if name == "target":
                estimates[name] = own[name]
                continue
            exact = s.through(linear, value, name)
            room = s.through(linear.absolute(), bound, name)
            if name != "bias":
                exact = exact + s.through(moved, gradient, name)
                room = room + s.through(moved.absolute(), gradient_bound, name)
            estimates[name] = Estimate(exact, room)
        return estimates


def linear_relative(s: Solution, linear: Linear) -> Array:
    """What a logit's own roundings are, and those of the sums over features, classes and positions that follow."""
    sums = sum(linear.hidden.shape) + len(linear.classifier)
    scale, _, _ = bounds.transform(s)
    largest = scale * linear.magnitude.max(initial=0, where=np.isfinite(linear.magnitude))
    return np.asarray(_relative(s) + bounds.units_of(s)[0] * sums * (ROOM + largest))


def _relative(s: Solution) -> Array:
    rows = s.rows
    gap = np.where(np.isfinite(rows.gap), rows.gap, 0)
    factor = 16 + 2 * gap + 2 * log2(rows.classes)
    if roundings := bounds.transform_roundings(s):
        farthest = np.where(np.isfinite(rows.logits), abs(rows.logits), 0).max(axis=1, keepdims=True)
        factor = factor + roundings * (1 + 2 * farthest) + 4 * rows.cap_ratio
    return np.asarray(ROOM * bounds.units_of(s)[0] * factor + bounds.denominator_error(s))


def _estimate(s: Solution, change: Change, relative: Array) -> Estimate:
    tiny = bounds.units_of(s)[1]
    with np.errstate(all="ignore"):
        room = np.where(change.magnitude == 0, 0, change.magnitude * relative + tiny)
    return Estimate(s.gradient(change.value), abs(s.gradient(room)))
