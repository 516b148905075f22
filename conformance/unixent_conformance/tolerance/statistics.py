"""The error model of statistics, with u, C and m those of `bounds`.

* log_prob, selected_log_prob and top_log_prob are losses, of one class each: (8 + 2 log2 C) u |L|, and their gradients
  those of losses.
* entropy is a sum of terms p_c L_c of one sign; p_c has the error of an entry of a gradient, L_c that of a loss, the
  sum u log2 C. Together (24 + 2 (m - x_c) + 5 log2 C) u relative to each term. Its gradient p_c (L_c - H) likewise,
  relative to p_c times the sum of the magnitudes, and at the maximum to p_k sum p_c (m - x_c), which is L_k - H itself.
  Where each x' has a rounding of its own, up to E, these differences move by it: 2 p_c (1 + |L_c - H|) E.
* log_sum_sq = log1p(Q) - 2 L_k, Q = sum of (p_c / p_k)^2: 2 L_k has the error of a loss; a term of Q twice that of
  an exponential, (4 + 4 (m - x_c)) u, and log1p(Q) moves by dQ / (1 + Q) and 2 u of itself.
* logsumexp is |m| + log S, each rounded once or twice, with what is absolute in log S: see `bounds`.
* max_prob is an entry of a gradient. mean_logit is a sum of C numbers in a tree, and a quotient.
* Indices and `correct` are exact.

Scale, softcap and temperature move each of them by |d/dx'| times the roundings of x'.
"""

from __future__ import annotations

import numpy as np

from unixent_conformance.model import Array
from unixent_conformance.oracle import Linear, Solution
from unixent_conformance.oracle.statistics import INDICES, Statistic, statistic
from unixent_conformance.tolerance import bounds, second
from unixent_conformance.tolerance.formats import Estimate, log2, times
from unixent_conformance.tolerance.linear import logit_error


def estimates(s: Solution, wrt: tuple[str, ...]) -> dict[str, Estimate]:
    """The statistic, and its gradient for logits where that is asked for."""
    exact, name = statistic(s.rows, s.call), s.call.statistic
    shape = (*s.rows.positions, *exact.value.shape[1:])
    named = {name: Estimate(exact.value.reshape(shape), _bound(s, exact).reshape(shape))}
    if wrt and s.linear is not None:
        return named | _linear_gradients(s, s.linear, wrt)
    if wrt:
        assert exact.gradient is not None
        assert exact.gradient_magnitude is not None
        with np.errstate(all="ignore"):
            gap = np.where(np.isfinite(s.rows.gap), s.rows.gap, 0)
            factor = 24 + 2 * gap + 5 * log2(s.rows.classes)
            if roundings := bounds.transform_roundings(s):
                farthest = np.where(np.isfinite(s.rows.logits), abs(s.rows.logits), 0).max(axis=1, keepdims=True)
                factor = factor + roundings * (1 + 2 * farthest) + 4 * s.rows.cap_ratio
            u, tiny = bounds.units_of(s)
            bound = times(exact.gradient_magnitude, factor * u)
            bound = bound + _moved(s, roundings * u * farthest if roundings else 0)
            floor = np.where(exact.gradient == 0, 0, tiny * (1 + s.rows.classes))
            named["logits"] = Estimate(s.rows.to_shape(exact.gradient), s.rows.to_shape(bound + floor))
    return named


def _moved(s: Solution, largest: Array | float) -> Array:
    """How far a gradient of entropy is moved where the logits x' are, by at most ``largest`` each."""
    rows = s.rows
    if s.call.statistic != "entropy":
        return np.zeros_like(rows.p)
    upstream = np.asarray(1.0 if s.call.grad_output is None else s.call.grad_output).astype(np.longdouble)
    upstream = np.broadcast_to(upstream, rows.positions).reshape(-1, 1)
    entropy = times(rows.p, rows.nll).sum(axis=1, keepdims=True)
    size = times(rows.p, 1 + abs(np.where(rows.p == 0, 0, rows.nll) - entropy))
    return np.asarray(2 * abs(upstream) * rows.transform_grad * rows.settled(size) * largest)


def _linear_gradients(s: Solution, linear: Linear, wrt: tuple[str, ...]) -> dict[str, Estimate]:
    """Those for hidden, classifier and bias: with the room that second derivatives have, for the logits are rounded."""
    with np.errstate(all="ignore"):
        value, size = map(s.gradient_rows, second.first(s))
        bound = abs(size * second.linear_relative(s, linear)) + bounds.units_of(s)[1]
        bound = bound + _moved(s, logit_error(s, linear).largest)
        of_rows = linear.absolute()
        return {name: Estimate(s.through(linear, value, name), s.through(of_rows, bound, name)) for name in wrt}


def _bound(s: Solution, exact: Statistic) -> Array:
    name, rows, (u, tiny) = s.call.statistic, s.rows, bounds.units_of(s)
    if name in INDICES or name == "correct":
        return np.zeros(exact.value.shape)
    logs = log2(rows.classes)
    of_name = {"entropy": 24 + 5 * logs, "log_sum_sq": 12 + 4 * logs, "max_prob": 16 + 2 * logs}
    roundings = of_name.get(name, 8 + 2 * logs)
    with np.errstate(all="ignore"):
        bound = roundings * u * exact.magnitude + tiny * (1 + rows.classes)
        if name == "logsumexp":
            bound = bound + bounds.lse_rounding(s)
        bound = bound + bounds.transform_roundings(s) * u * exact.sensitivity
        if s.linear is not None:
            error = logit_error(s, s.linear)
            moved = statistic(rows, s.call, error.eps).sensitivity
            bound = bound * error.room.reshape(-1, *(1,) * (bound.ndim - 1)) + 2 * moved
        bound = np.where(exact.magnitude == 0, 0, bound)
        return np.where(np.isfinite(exact.value), bound, 0)
