"""The error model of the fused linear form: what the roundings of a D-term dot product do to value and gradients.

A logit accumulated in any order in the accumulation dtype, with gamma_k = k u / (1 - k u) (Higham, Accuracy and
Stability of Numerical Algorithms, 3.1), is within

    |z^_c - z_c| <= eps_c = gamma_{D+1} (sum_d |h_d||w_cd| + |b_c|)

of the exact one. x' is moved by that times dx'/dx, under a softcap at most exp(2 eps/a) times that at z. Let E be a
row's largest eps. What is moved, from r_c = exp(z_j - z_c) being moved by a factor of at most exp(eps_j + eps_c):

    |dL_c|    <= M_c = exp(2E) sum_{j != c} p_j expm1(eps_j + eps_c)      which keeps the factor 1 - p_c
    |d lse|   <= M   = exp(2E) sum_j p_j expm1(eps_j)
    |d p_c|   <= Q_c = p_c expm1(M_c)                                     since log p_c = -L_c
    |d l|     <= |v| [ sum_c |t_c| M_c + z (2 |lse| M + M^2) ]
    |d g_c|   <= |v| [ (sum_j |t_j|) Q_c + 2 z (|lse| Q_c + M (p_c + Q_c)) ]

The arithmetic that follows has the bound of the unfused form (`bounds`), times 1 + 8 E for being due at the moved
logits. E is at most 1/64 in every case of the catalogue, which a test holds, so nothing here is vacuous. The gradients
are then sums of C or N products: with G the gradient of the logits and B its bound, each entry is within

    hidden: B |W| + gamma_C (|G| + B) |W|      classifier: B^T |h| + gamma_N (|G| + B)^T |h|      bias: h = 1

and one rounding to the dtype of what it is taken with respect to. Nothing on the way is rounded to half precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unixent_conformance.model import Array
from unixent_conformance.oracle import Linear, Solution, sum_of_rest
from unixent_conformance.oracle.sparse import SparseRows
from unixent_conformance.tolerance import bounds, sparse
from unixent_conformance.tolerance.formats import Estimate, times


@dataclass(frozen=True)
class LogitError:
    """How far the roundings of the logits move what is made of them."""

    eps: Array  # eps_c of x', (N, C)
    nll: Array  # M_c, (N, C)
    lse: Array  # M, (N, 1)
    p: Array  # Q_c, (N, C)
    transform_grad: Array  # relative, (N, C)
    largest: Array  # E, (N, 1)

    @property
    def room(self) -> Array:
        """What the arithmetic's own bound grows by, (N, 1)."""
        return np.asarray(1 + 8 * self.largest)


def estimates(s: Solution, linear: Linear, wrt: tuple[str, ...]) -> dict[str, Estimate]:
    """The loss, and the gradient of each argument named in `wrt`."""
    error = logit_error(s, linear)
    named = {"loss": _loss(s, error)}
    if wrt:
        logits = _logits_gradient(s, error)
        for name in wrt:
            named[name] = _target_gradient(s, error) if name == "target" else _carried(s, linear, logits, name)
    return named


def logit_error(s: Solution, linear: Linear) -> LogitError:
    """What follows from eps, row by row; an infinite logit is infinite whatever its roundings."""
    rows, (scale, softcap, _), (u, tiny) = s.rows, bounds.transform(s), bounds.units_of(s)
    terms = linear.hidden.shape[1] + 1
    with np.errstate(all="ignore"):
        raw = gamma(terms, u) * linear.magnitude + terms * tiny
        raw = np.where(np.isfinite(rows.logits) & np.isfinite(raw), raw, 0)
        ratio = raw * scale / softcap if softcap else np.zeros_like(raw)
        eps = raw * np.where(raw > 0, rows.transform_grad * np.exp(2 * ratio), 0)
        largest = eps.max(axis=1, keepdims=True)
        p = np.where(np.isfinite(rows.p), rows.p, 0)
        one_minus_p = np.where(np.isfinite(rows.one_minus_p), rows.one_minus_p, 0)
        moved = p * np.expm1(eps)
        nll = np.exp(2 * largest) * (np.exp(eps) * sum_of_rest(moved) + np.expm1(eps) * one_minus_p)
        lse = np.exp(2 * largest) * moved.sum(axis=1, keepdims=True)
        return LogitError(eps, nll, lse, p * np.expm1(nll), np.expm1(2 * ratio), largest)


def gamma(terms: int, u: float) -> float:
    """gamma_k = k u / (1 - k u): the relative error of k roundings in a row."""
    return terms * u / (1 - terms * u)


def _loss(s: Solution, error: LogitError) -> Estimate:
    given, rows = bounds.loss(s), s.rows
    with np.errstate(all="ignore"):
        extra = times(abs(rows.coefs), error.nll).sum(axis=1)
        lse = error.lse[:, 0]
        extra = extra + rows.z_loss * (2 * abs(rows.lse) * lse + lse**2 if rows.z_loss else 0)
        extra = extra + rows.moved_loss(error.largest)
        extra = np.where((rows.position_weight == 0) | rows.nan_rows, 0, abs(rows.position_weight) * extra)
        if s.call.reduction == "none":
            bound = given.bound.reshape(-1) * error.room[:, 0] + extra
            return Estimate(given.value, bound.reshape(rows.positions))
        total = extra.sum() * (abs(s.reduced.scale).max(initial=0) if s.call.reduction == "mean" else 1)
        return Estimate(given.value, given.bound * error.room.max(initial=1) + total)


def _logits_gradient(s: Solution, error: LogitError) -> Estimate:
    """G and B, (N, C)."""
    given, rows = bounds.logits_gradient(s), s.rows
    with np.errstate(all="ignore"):
        extra = abs(rows.coefs).sum(axis=1, keepdims=True) * error.p
        if rows.z_loss:
            extra = extra + 2 * rows.z_loss * (abs(rows.lse)[:, None] * error.p + error.lse * (rows.p + error.p))
        extra = extra + rows.moved_gradient(error.largest)
        extra = abs(rows.position_weight)[:, None] * extra * rows.transform_grad * (1 + error.transform_grad)
        extra = extra + times(rows.transform_grad * error.transform_grad, rows.gradient_magnitudes())
        bound = given.bound.reshape(extra.shape) * error.room + abs(s.gradient_rows(extra))
        return Estimate(given.value.reshape(extra.shape), bound)


def _carried(s: Solution, linear: Linear, logits: Estimate, name: str) -> Estimate:
    """The gradient of an argument from that of the logits: a sum of C or N products."""
    count = s.rows.classes if name == "hidden" else len(s.rows.position_weight)
    u, tiny = bounds.units_of(s)
    with np.errstate(all="ignore"):
        bound = logits.bound + gamma(count, u) * (abs(logits.value) + logits.bound)
        bound = s.through(linear.absolute(), bound, name)
        return Estimate(s.through(linear, logits.value, name), np.where(bound == 0, 0, bound + count * tiny))


def _target_gradient(s: Solution, error: LogitError) -> Estimate:
    rows = s.rows
    if isinstance(rows, SparseRows):
        moved = np.take_along_axis(error.nll, rows.index, axis=1)
        return sparse.target_gradient(s, rows, moved + rows.moved_rest(error.largest)[:, None], error.room)
    given = bounds.target_gradient(s)
    with np.errstate(all="ignore"):
        extra = abs(rows.position_weight)[:, None] * times(abs(rows.target_coef), error.nll)
        bound = given.bound.reshape(extra.shape) * error.room + abs(s.gradient_rows(extra))
        return Estimate(given.value, bound.reshape(given.value.shape))
