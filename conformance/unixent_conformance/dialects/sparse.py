"""Rows of sparse targets that behave otherwise: divergences, students of the K classes alone, tails by subtraction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from unixent_conformance.dialects.rows import Absolute, become
from unixent_conformance.model import Array, Call, Case
from unixent_conformance.oracle import Rows
from unixent_conformance.oracle.rows import product
from unixent_conformance.oracle.sparse import SparseRows
from unixent_conformance.tolerance import Format


def log(values: Array) -> Array:
    """0 at 0, where it is multiplied by 0."""
    return np.asarray(np.log(np.where(values == 0, 1, values)))


@dataclass(frozen=True)
class Divergence(SparseRows):
    """Less the teacher's own entropy, of its K numbers as they are and of the bucket."""

    def losses(self) -> Array:
        negative = (self.share * log(self.share)).sum(axis=1) + self.rest * log(self.rest)
        return np.asarray(super().losses() + self.settled(self.position_weight * negative))

    def loss_magnitudes(self) -> Array:
        terms = (self.share * abs(log(self.share))).sum(axis=1) + self.rest * abs(log(self.rest))
        return np.asarray(super().loss_magnitudes() + self.settled(abs(self.position_weight) * terms))

    def loss_roundings(self) -> Array:
        own = (self.share * self.share_roundings * (1 + abs(log(self.share)))).sum(axis=1)
        rest = self.rest_roundings * (1 + abs(log(self.rest)))
        return np.asarray(super().loss_roundings() + self.settled(abs(self.position_weight) * (own + rest)))

    def target_gradients(self) -> Array:
        return np.asarray(super().target_gradients() + self._teacher_gradients(1))

    def target_magnitudes(self) -> Array:
        return np.asarray(super().target_magnitudes() + self._teacher_gradients(-1))

    def _teacher_gradients(self, sign: int) -> Array:
        """d/dq_k of sum_k q_k log q_k and of the bucket's; with the sign -1 the sum of the terms' magnitudes."""
        of_share, of_rest = (each if sign == 1 else abs(each) for each in (log(self.share), log(self.rest)))
        grad = of_share + 1
        if self.tail == "renormalize":
            grad = (of_share - sign * (self.share * of_share).sum(axis=1, keepdims=True)) / self.total
        grad = grad - sign * self.rest_factor * (of_rest[:, None] + 1)
        grad = product(self.q, grad) if self.logarithmic else grad
        return self.settled(np.where(self.padding, 0, self.position_weight[:, None] * grad))


@dataclass(frozen=True)
class Complement(Absolute):
    """L_rest = -log(1 - P_S) of a P_S that is rounded relative to 1, where that leaves digits."""

    most_odds: float = 0.0

    @property
    def lost(self) -> Array:
        """What the roundings of L_rest are relative to, (N,): P_S / (1 - P_S)."""
        assert isinstance(self, SparseRows)
        odds = np.expm1(self.rest_nll)
        return np.where(odds <= self.most_odds, odds, 0)

    def loss_magnitudes(self) -> Array:
        assert isinstance(self, SparseRows)
        return np.asarray(super().loss_magnitudes() + self.settled(abs(self.position_weight) * self.rest * self.lost))

    def gradient_roundings(self) -> Array:
        assert isinstance(self, SparseRows)
        grad = (self.rest * (1 + self.lost))[:, None] * abs(self.rest_grad) * self.transform_grad
        return np.asarray(super().gradient_roundings() + self.settled(abs(self.position_weight)[:, None] * grad))

    def target_magnitudes(self) -> Array:
        return np.asarray(super().target_magnitudes() + self.target_terms(0 * self.p + self.lost[:, None]))


def complement(rows: Rows, call: Call) -> Rows:
    # An error of a sixteenth at the most: the bound is some 16 units of what it is relative to.
    return become(Complement, rows, most_odds=1 / (256 * Format.of(call.acc_dtype).roundoff))


def is_bare(call: Call, case: Case) -> bool:
    """Whether nothing but the teacher's part is in a loss of sparse targets."""
    return bool(call.tail) and call.weight is None and not {"label_smoothing", "z_loss"} & call.options.keys()


def over_selected(call: Call) -> Call:
    """Only the selected classes are left, of the positions that have any."""
    axis, ignored = call.options.get("axis", -1), call.options.get("ignore_index", -100)
    x, ids = np.moveaxis(call.logits, axis, -1), np.asarray(call.ids)
    classes = np.arange(x.shape[-1])
    is_left = ((ids[..., None] == classes) & (ids != ignored)[..., None]).any(axis=-2)
    is_left |= ~is_left.any(axis=-1, keepdims=True)
    return replace(call, logits=np.moveaxis(np.where(is_left, x, np.array(-np.inf, x.dtype)), -1, axis))
