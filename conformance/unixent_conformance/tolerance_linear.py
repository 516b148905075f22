"""The error model of the fused linear form: what the roundings of a D-term dot product do to value and gradients.

A logit accumulated in any order in the accumulation dtype, with gamma_k = k u / (1 - k u) (Higham, Accuracy and
Stability of Numerical Algorithms, 3.1), is within

    |z^_c - z_c| <= eps_c = gamma_{D+1} (sum_d |h_d||w_cd| + |b_c|)

of the exact one. A softcap shrinks that by its slope, at most exp(2 eps/a) times the slope at z. Let E be a row's
largest eps. What is moved, from r_c = exp(z_j - z_c) being moved by a factor of at most exp(eps_j + eps_c):

    |dL_c|    <= M_c = exp(2E) sum_{j != c} p_j expm1(eps_j + eps_c)      which keeps the factor 1 - p_c
    |d lse|   <= M   = exp(2E) sum_j p_j expm1(eps_j)
    |d p_c|   <= Q_c = p_c expm1(M_c)                                     since log p_c = -L_c
    |d l|     <= |v| [ sum_c |t_c| M_c + z (2 |lse| M + M^2) ]
    |d g_c|   <= |v| [ (sum_j |t_j|) Q_c + 2 z (|lse| Q_c + M (p_c + Q_c)) ]

The arithmetic that follows has the bound of the unfused form (`tolerance`), times 1 + 8 E for being due at the moved
logits. E is at most 1/64 in every case of the catalogue, which a test holds, so nothing here is vacuous. The gradients
are then sums of C or N products: with G the gradient of the logits and B its bound, each entry is within

    hidden: B |W| + gamma_C (|G| + B) |W|      classifier: B^T |h| + gamma_N (|G| + B)^T |h|      bias: h = 1

and one rounding to the dtype of what it is taken with respect to. Nothing on the way is rounded to half precision.
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


@dataclass(frozen=True)
class Moved:
    """How far the roundings of the logits move what is made of them."""

    surprise: Array  # M_c, (N, C)
    lse: Array  # M, (N, 1)
    probability: Array  # Q_c, (N, C)
    slope: Array  # relative, of the softcap's derivative, (N, C)
    largest: Array  # E, (N, 1)

    @property
    def room(self) -> Array:
        """What the arithmetic's own bound grows by, (N, 1)."""
        return np.asarray(1 + 8 * self.largest)


def estimates(call: Call, gradients: bool, seen: Callable[[Rows], Rows] = lambda rows: rows) -> dict[str, Estimate]:
    """The loss and, if asked, the gradient of every differentiable argument, by name; `seen` may change the rows'
    error model."""
    found, narrow = oracle_linear.solve(call), call.acc_dtype
    found = replace(found, rows=seen(found.rows))
    reduced, moved = oracle_linear.reduce(found, call), logits_moved(found, call)
    upstream = None if call.upstream is None else np.asarray(call.upstream)
    named = {"loss": _loss(found.rows, reduced, moved, str(call.options.get("reduction", "mean")), narrow)}
    if gradients:
        own = _logits_gradient(found.rows, reduced, moved, upstream, narrow)
        for name in call.differentiable():
            named[name] = _carried(found, own, name, narrow)
            if name == "target":
                named[name] = _target_gradient(found.rows, reduced, moved, upstream, narrow)
    return named


def logits_moved(found: LinearRows, call: Call) -> Moved:
    """What follows from eps, row by row; an infinite logit is infinite whatever its roundings."""
    rows, softcap = found.rows, call.options.get("softcap")
    u, tiny = tolerance.roundoff(call.acc_dtype), Format.of(call.acc_dtype).smallest_normal
    terms = found.hidden.shape[1] + 1
    with np.errstate(all="ignore"):
        raw = gamma(terms, u) * found.magnitude + terms * tiny
        raw = np.where(np.isfinite(rows.logits) & np.isfinite(raw), raw, 0)
        turn = raw / softcap if softcap else np.zeros_like(raw)
        eps = raw * np.where(raw > 0, rows.slope * np.exp(2 * turn), 0)
        largest = eps.max(axis=1, keepdims=True)
        p = np.where(np.isfinite(rows.probability), rows.probability, 0)
        away = np.where(np.isfinite(rows.complement), rows.complement, 0)
        flow = p * np.expm1(eps)
        own = np.exp(2 * largest) * (np.exp(eps) * oracle.sum_of_others(flow) + np.expm1(eps) * away)
        return Moved(
            surprise=own,
            lse=np.exp(2 * largest) * flow.sum(axis=1, keepdims=True),
            probability=p * np.expm1(own),
            slope=np.expm1(2 * turn),
            largest=largest,
        )


def gamma(terms: int, u: float) -> float:
    """gamma_k = k u / (1 - k u): the relative error of k roundings in a row."""
    return terms * u / (1 - terms * u)


def _loss(rows: Rows, reduced: Reduced, moved: Moved, reduction: str, acc_dtype: str) -> Estimate:
    given = tolerance.loss(rows, reduced, reduction, acc_dtype)
    with np.errstate(all="ignore"):
        mixed = _times(abs(rows.coefficient), moved.surprise).sum(axis=1)
        shift = moved.lse[:, 0]
        extra = abs(rows.counted) * (mixed + rows.z_loss * (2 * abs(rows.lse) * shift + shift**2 if rows.z_loss else 0))
        extra = np.where((rows.counted == 0) | rows.lost, 0, extra)
        if reduction == "none":
            return Estimate(given.value, (given.bound.reshape(-1) * moved.room[:, 0] + extra).reshape(rows.positions))
        total = extra.sum() * (abs(reduced.scale).max(initial=0) if reduction == "mean" else 1)
        return Estimate(given.value, given.bound * moved.room.max(initial=1) + total)


def _logits_gradient(rows: Rows, reduced: Reduced, moved: Moved, upstream: Array | None, acc_dtype: str) -> Estimate:
    """G and B, (N, C)."""
    given = tolerance.logits_gradient(rows, reduced, upstream, acc_dtype)
    with np.errstate(all="ignore"):
        weight = abs(rows.coefficient).sum(axis=1, keepdims=True)
        flow = weight * moved.probability
        if rows.z_loss:
            lse = abs(rows.lse)[:, None]
            flow = flow + 2 * rows.z_loss * (
                lse * moved.probability + moved.lse * (rows.probability + moved.probability)
            )
        flow = abs(rows.counted)[:, None] * flow * rows.slope * (1 + moved.slope)
        flow = flow + _times(rows.slope * moved.slope, rows.gradient_magnitudes())
        extra = _scaled(rows, reduced, flow, upstream)
        return Estimate(_flat(rows, given.value), _flat(rows, given.bound) * moved.room + extra)


def _carried(found: LinearRows, own: Estimate, name: str, acc_dtype: str) -> Estimate:
    """The gradient of an argument from that of the logits: a sum of C or N products."""
    count = found.rows.classes if name == "hidden" else len(found.rows.counted)
    u, tiny = tolerance.roundoff(acc_dtype), Format.of(acc_dtype).smallest_normal
    positive = LinearRows(found.rows, abs(found.hidden), abs(found.classifier), found.magnitude)
    with np.errstate(all="ignore"):
        bound = own.bound + gamma(count, u) * (abs(own.value) + own.bound)
        bound = oracle_linear.through(positive, bound, name)
        value = oracle_linear.through(found, own.value, name)
        return Estimate(value, np.where(bound == 0, 0, bound + count * tiny))


def _target_gradient(rows: Rows, reduced: Reduced, moved: Moved, upstream: Array | None, acc_dtype: str) -> Estimate:
    given = tolerance.target_gradient(rows, reduced, upstream, acc_dtype)
    with np.errstate(all="ignore"):
        extra = abs(rows.counted)[:, None] * _times(abs(rows.target_factor), moved.surprise)
        bound = _flat(rows, given.bound) * moved.room + _scaled(rows, reduced, extra, upstream)
        return Estimate(given.value, bound.reshape(given.value.shape))


def _scaled(rows: Rows, reduced: Reduced, bound: Array, upstream: Array | None) -> Array:
    """A bound per position under the reduction's factor and the upstream gradient."""
    return abs(_flat(rows, oracle.gradient(rows, reduced, bound, None if upstream is None else abs(upstream))))


def _flat(rows: Rows, array: Array) -> Array:
    return np.asarray(array).reshape(len(rows.counted), rows.classes)


def _times(magnitude: Array, factor: Any) -> Array:
    """magnitude * factor with nothing from a magnitude of 0."""
    return np.where(magnitude == 0, 0, magnitude * factor)
