"""Positions with sparse targets: a teacher's K classes as coefficients of all C, and what it gave the other classes.

    l_n = v_n [ sum_c t_c L_c + b L_rest + z lse^2 ]    t_c = w_c ((1 - s) sum_{k: c_k = c} q_k / Q' + s/C)    d_n = v_n

with Q' = Q where the tail renormalizes and 1 elsewhere, and b = (1 - s) max(0, 1 - Q) for a bucket. With S the classes
of the teacher, Z_S and Z_R the sums of exponentials in and outside S,

    L_rest = log1p(Z_S / Z_R)        dL_rest/dx_c = p_c in S, -(e_c / Z_R) Z_S / (Z_S + Z_R) elsewhere
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from unixent_conformance.model import Array, Call
from unixent_conformance.oracle.rows import Rows, padded_weight, product, solve_rows, sum_of_rest


@dataclass(frozen=True)
class SparseRows(Rows):
    """Rows whose coefficients are a teacher's; of each of its K classes, (N, K), 0 at the padding unless said."""

    index: Array  # the class, 0 at the padding
    padding: Array
    q: Array  # q_k
    share: Array  # q_k / Q'
    factor: Array  # (1 - s) w_k
    share_roundings: Array  # of q_k / Q', in u relative to itself
    total: Array  # Q', (N, 1)
    rest: Array  # b, (N,)
    rest_roundings: Array  # of b, in u, (N,)
    rest_nll: Array  # L_rest, (N,); 0 without a bucket
    rest_grad: Array  # dL_rest/dx', (N, C); 0 without a bucket
    tail: str
    logarithmic: bool  # whether the target's numbers are log q_k
    rest_factor: Array  # db/dQ without its sign, (N, 1)

    def losses(self) -> Array:
        with np.errstate(all="ignore"):
            rest = self.settled(self.position_weight * product(self.rest, self.rest_nll))
            return np.asarray(super().losses() + rest)

    def loss_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            rest = self.settled(abs(self.position_weight) * product(self.rest, self.rest_nll))
            return np.asarray(super().loss_magnitudes() + rest)

    def logits_gradients(self) -> Array:
        with np.errstate(all="ignore"):
            rest = self.position_weight[:, None] * self.transform_grad * product(self.rest[:, None], self.rest_grad)
            return np.asarray(super().logits_gradients() + self.settled(rest))

    def gradient_magnitudes(self) -> Array:
        with np.errstate(all="ignore"):
            rest = abs(self.position_weight)[:, None] * product(self.rest[:, None], abs(self.rest_grad))
            return np.asarray(super().gradient_magnitudes() + self.settled(rest))

    def total_coefs(self) -> Array:
        return np.asarray(super().total_coefs() + self.rest)

    def loss_roundings(self) -> Array:
        with np.errstate(all="ignore"):
            terms = product(abs(self.factor) * self.share * self.share_roundings, self._selected_nll())
            rest = product(self.rest_roundings, self.rest_nll)
            return self.settled(abs(self.position_weight) * (terms.sum(axis=1) + rest))

    def gradient_roundings(self) -> Array:
        """A sixteenth of what the target's arithmetic comes to: the error model has at least 16 units of it."""
        with np.errstate(all="ignore"):
            of_coefs = np.zeros_like(self.p)
            np.add.at(
                of_coefs,
                (np.arange(len(self.index))[:, None], self.index),
                abs(self.factor) * self.share * self.share_roundings,
            )
            grad = self.p * sum_of_rest(of_coefs) + of_coefs * self.one_minus_p
            grad = grad + product(self.rest_roundings[:, None], abs(self.rest_grad))
            return self.settled(abs(self.position_weight)[:, None] * self.transform_grad * grad) / 16

    def moved_loss(self, largest: Array) -> Array:
        return np.asarray(self.rest * self.moved_rest(largest))

    def moved_rest(self, largest: Array) -> Array:
        """|dL_rest|, (N,): L_rest moves by sum |dL_rest/dx'_c| |dx'_c|, and its derivative by a factor of exp(4 E)."""
        size = np.where(np.isfinite(self.rest_nll), abs(self.rest_grad).sum(axis=1), 0)
        return np.asarray(size * (np.exp(4 * largest) * largest)[:, 0])

    def moved_gradient(self, largest: Array) -> Array:
        return np.asarray(product(self.rest[:, None], abs(self.rest_grad)) * np.expm1(4 * largest))

    def _selected_nll(self) -> Array:
        return np.where(self.padding, 0, np.take_along_axis(self.nll, self.index, axis=1))

    def target_gradients(self) -> Array:
        """dl_n/dq_k, or dl_n/dlog q_k, (N, K)."""
        return self._target_gradients(1)

    def target_magnitudes(self) -> Array:
        return np.asarray(abs(self._target_gradients(-1)))

    def target_terms(self, nll: Array) -> Array:
        own = abs(self.factor) * np.take_along_axis(nll, self.index, axis=1)
        mean = (self.share * own).sum(axis=1, keepdims=True) if self.tail == "renormalize" else 0
        terms = (own + mean) / self.total + self.rest_factor * nll.max(axis=1, keepdims=True)
        terms = terms * (self.q if self.logarithmic else 1)
        return np.where(self.padding, 0, abs(self.position_weight)[:, None] * terms)

    def _target_gradients(self, sign: int) -> Array:
        """With the sign -1, the sum of its terms' magnitudes."""
        with np.errstate(all="ignore"):
            grad = product(self.factor if sign == 1 else abs(self.factor), self._selected_nll())
            mean = product(self.share, grad).sum(axis=1, keepdims=True)
            if self.tail == "renormalize":
                grad = np.where(self.share.sum(axis=1, keepdims=True) == 0, 0, (grad - sign * mean) / self.total)
            grad = grad - sign * product(self.rest_factor, self.rest_nll[:, None])
            grad = product(self.q, grad) if self.logarithmic else grad
            return self.settled(np.where(self.padding, 0, self.position_weight[:, None] * grad))


def solve_sparse_rows(logits: Array, call: Call, options: dict[str, Any]) -> SparseRows:
    """The positions of a call with a tail."""
    nothing = np.zeros(logits.shape)  # as probabilities: what is left are the coefficients of smoothing
    options = dict(options)
    ignored = options.pop("ignore_index", -100)
    rows = solve_rows(logits, nothing, call.acc_dtype, weight=call.weight, mask=call.mask, **options)
    n, width = rows.logits.shape
    ids = np.asarray(call.ids).reshape(n, np.shape(call.ids)[-1])
    padding = ids == ignored
    outside = ~padding & ((ids < 0) | (ids >= rows.classes))
    index = np.where(padding | outside, 0, ids).astype(np.int64)
    given = np.asarray(call.target).astype(call.acc_dtype).astype(np.longdouble).reshape(ids.shape)
    inactive = (rows.position_weight == 0)[:, None]
    with np.errstate(all="ignore"):
        q = np.where(padding | inactive, 0, np.exp(given) if call.log_probs else given)
        sum_roundings = np.log2(max(ids.shape[1], 1))
        roundings = np.full(q.shape, 6 + sum_roundings)
        total, rest, rest_roundings = np.ones((n, 1), np.longdouble), np.zeros(n), np.zeros(n)
        if call.log_probs:
            roundings = roundings + 4
        if call.tail == "renormalize":
            total = q.sum(axis=1, keepdims=True)
            roundings = roundings + 4 + sum_roundings
            if call.log_probs:
                top = np.where(padding, -np.inf, given).max(axis=1, keepdims=True)
                roundings = roundings + np.where(q == 0, 0, abs(given - top))
        safe_total = np.where(total == 0, 1, total)
        share = np.where(total == 0, 0, q / safe_total)
        if call.tail == "bucket":
            rest, rest_roundings = _left_over(call, q, given, padding)
        w = padded_weight(call.weight, call.acc_dtype, rows.classes, width)
        one_minus_s = 1 - np.longdouble(options.get("label_smoothing", 0.0))
        factor = np.where(padding, 0, one_minus_s * w[index])
        coefs = rows.coefs.copy()
        np.add.at(coefs, (np.arange(n)[:, None], index), np.where(padding, 0, factor * share))
        rest_nll, rest_grad = np.zeros(n), np.zeros_like(rows.p)
        if call.tail == "bucket":
            rest_nll, rest_grad = _rest(rows, index, padding)
    given_fields = {field.name: getattr(rows, field.name) for field in fields(rows)}
    given_fields |= {
        "coefs": coefs,
        "rest_coefs": sum_of_rest(coefs),
        "nan_rows": rows.nan_rows | outside.any(axis=1),
    }
    return SparseRows(
        **given_fields,
        index=index,
        padding=padding,
        q=q,
        share=share,
        factor=factor,
        share_roundings=roundings,
        total=safe_total,
        rest=one_minus_s * rest,
        rest_roundings=one_minus_s * rest_roundings,
        rest_nll=rest_nll,
        rest_grad=rest_grad,
        tail=call.tail,
        logarithmic=call.log_probs,
        rest_factor=(one_minus_s * (rest > 0))[:, None],
    )


def _left_over(call: Call, q: Array, given: Array, padding: Array) -> tuple[Array, Array]:
    """max(0, 1 - Q), and its error in roundings of 1."""
    largest = np.arange(q.shape[1]) == np.argmax(q, axis=1)[:, None]
    top = np.where(padding, -np.inf if call.log_probs else 0, given).max(axis=1)
    one_minus = -np.expm1(top) if call.log_probs else 1 - top
    others = np.where(largest, 0, q).sum(axis=1)
    left = one_minus - others
    roundings = (6 + np.log2(max(q.shape[1], 1))) * (abs(one_minus) + others)
    roundings = np.where(left < -roundings * np.finfo(call.acc_dtype).eps, 0, roundings)
    return np.where(left <= 0, 0, left), roundings


def _rest(rows: Rows, index: Array, padding: Array) -> tuple[Array, Array]:
    """L_rest, and its derivatives."""
    selected = np.zeros(rows.p.shape, bool)
    n = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
    selected[n[~padding], index[~padding]] = True
    selected[selected[:, : rows.classes].all(axis=1)] = False  # no class is left, and so there is no bucket
    # Each side relative to its own largest logit: one may be too far below the other for an exponential.
    nearest = [np.where(side, rows.gap, np.inf).min(axis=1) for side in (selected, ~selected)]
    exponentials = [
        np.where(side & np.isfinite(rows.gap), np.exp(np.where(np.isfinite(near), near, 0)[:, None] - rows.gap), 0)
        for side, near in zip((selected, ~selected), nearest, strict=True)
    ]
    inside, outside = (each.sum(axis=1) for each in exponentials)
    distance, ratio = nearest[1] - nearest[0], inside / outside
    odds = ratio * np.exp(distance)
    loss = np.where(distance > 1000, distance + np.log(ratio), np.log1p(odds))
    share = exponentials[1] / np.where(outside == 0, 1, outside)[:, None]
    return loss, np.where(selected, rows.p, -share / (1 + 1 / odds)[:, None])
