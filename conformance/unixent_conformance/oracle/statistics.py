"""The statistics of every position, and their gradients, from the formulas.

With p, L and lse those of `rows`, over the classes that exist:

    log_prob -L_y        entropy sum p L        log_sum_sq log sum p^2 = log1p(sum_{c != k} (p_c/p_k)^2) - 2 L_k
    d log_prob / dx_c = [c = y] (1 - p_c) - [c != y] p_c      d lse / dx_c = p_c      d entropy / dx_c = p_c (L_c - H)

in which L_k - H = -sum_{c != k} p_c (x_k - x_c) at the maximum k, so that nothing cancels there either. Where x' moves
along d, with k = sum p d, these change by

    log_prob -p_c (d_c - k)        lse p_c (d_c - k)        entropy p_c [(d_c - k) (L_c - H - 1) - sum p (L - H) d]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixent_conformance.model import Array, Call
from unixent_conformance.oracle.rows import Rows, product

INDICES = ("prediction", "rank", "top_index")


@dataclass(frozen=True)
class Statistic:
    """One output of a call.

    Of each position, (N,) or (N, K): its value, the magnitude that its roundings are relative to, and its sensitivity,
    the sum of |d/dx'_c| |x'_c|. Where there is one, the gradient (N, C) under the call's upstream gradient, and the
    magnitudes of its terms.
    """

    value: Array
    magnitude: Array
    sensitivity: Array
    gradient: Array | None = None
    gradient_magnitude: Array | None = None


def statistic(rows: Rows, call: Call, sizes: Array | None = None) -> Statistic:
    """The statistic that a call asks for, of its positions as they have been solved; its sensitivity to ``sizes``,
    (N, C), in the place of |x'_c|."""
    with np.errstate(all="ignore"):
        solved = _Solved(rows, call, sizes)
        value, magnitude, sensitivity = getattr(solved, call.statistic)()
        columns = (solved.settled(value), solved.settled(magnitude), solved.settled(sensitivity))
        gradient = getattr(solved, f"{call.statistic}_gradient", None)
        if gradient is None:
            return Statistic(*columns)
        grad, size = gradient()
        chain = np.where(solved.undefined[:, None], np.nan, rows.transform_grad)
        return Statistic(*columns, rows.settled(chain * grad), rows.settled(chain * size))


def second_derivative(rows: Rows, call: Call, moved: Array) -> tuple[Array, Array, Array, Array]:
    """The gradient for x' and the magnitudes of its terms, and both of its change where x' moves, (N, C); under an
    upstream gradient of 1, or of selected classes under the call's."""
    solved = _Solved(rows, call if call.selected is not None else replace(call, grad_output=None))
    value, size = solved.change(moved)
    return (*getattr(solved, f"{call.statistic}_gradient")(), value, size)


class _Solved:
    def __init__(self, rows: Rows, call: Call, sizes: Array | None = None) -> None:
        self.rows, self.call = rows, call
        self.exists = np.arange(rows.logits.shape[1]) < rows.classes
        self.n = np.arange(len(rows.logits))
        self.pivot = np.argmax(np.where(self.exists, rows.logits, -np.inf), axis=1)
        self.sizes = np.where(np.isfinite(rows.logits), abs(rows.logits), 0) if sizes is None else sizes
        self.mean_size = (rows.p * self.sizes).sum(axis=1)
        self.undefined = rows.nan_rows | np.isnan(rows.lse_minus_shift)
        self.form = "bool" if call.statistic == "correct" else "int" if call.statistic in INDICES else "float"
        upstream = np.asarray(1.0 if call.grad_output is None else call.grad_output).astype(np.longdouble)
        wide = () if call.selected is None else (np.shape(call.selected)[-1],)
        self.upstream = np.broadcast_to(upstream, (*rows.positions, *wide)).reshape(len(self.n), *wide)

    def settled(self, value: Array) -> Array:
        column = (slice(None),) + (None,) * (value.ndim - 1)
        undefined, inactive = {"float": (np.nan, 0), "int": (-1, -1), "bool": (False, False)}[self.form]
        value = np.where(self.undefined[column], undefined, value)
        if self.call.statistic == "selected_log_prob":
            value = np.where(self._selected()[1], 0, value)
        return np.where((self.rows.position_weight == 0)[column] & ~self.rows.nan_rows[column], inactive, value)

    @property
    def index(self) -> Array:
        y = np.asarray(self.call.target).reshape(-1)
        return np.where((y >= 0) & (y < self.rows.classes), y, 0).astype(np.int64)

    def _nll(self, index: Array) -> tuple[Array, Array, Array]:
        """-L of one class of each position, or of K."""
        wide = index.reshape(len(self.n), *(index.shape[1:] or (1,)))
        nll = np.take_along_axis(self.rows.nll, wide, axis=1)
        far = np.take_along_axis(self.rows.far, wide, axis=1)
        own = np.take_along_axis(self.sizes, wide, axis=1) * np.take_along_axis(self.rows.one_minus_p, wide, axis=1)
        others = self.mean_size[:, None] - np.take_along_axis(self.rows.p * self.sizes, wide, axis=1)
        nll, far, moved = (each.reshape(index.shape) for each in (nll, far, own + others))
        return -nll, nll + far, moved

    def log_prob(self) -> tuple[Array, Array, Array]:
        return self._nll(self.index)

    def log_prob_gradient(self) -> tuple[Array, Array]:
        own = np.arange(self.rows.logits.shape[1]) == self.index[:, None]
        each = np.where(own, self.rows.one_minus_p, self.rows.p)
        up = self.upstream[:, None]
        return up * np.where(own, each, -each), abs(up) * (each + self._far_p(own))

    def _far_p(self, own: Array) -> Array:
        """What the roundings of [c = y] - p_c are relative to beside itself."""
        p, far = self.rows.p, self.rows.far
        return np.asarray(product(p, far) + np.where(own, product(p, np.minimum(far, 1)), 0))

    def _selected(self) -> tuple[Array, Array, Array]:
        given = np.asarray(self.call.selected).reshape(len(self.n), np.shape(self.call.selected)[-1])
        padding = given == self.call.options.get("ignore_index", -100)
        outside = ~padding & ((given < 0) | (given >= self.rows.classes))
        return np.where(padding | outside, 0, given).astype(np.int64), padding, outside

    def selected_log_prob(self) -> tuple[Array, ...]:
        index, padding, outside = self._selected()
        each = self._nll(index)
        return tuple(np.where(padding, 0, np.where(outside, np.nan, column)) for column in each)

    def selected_log_prob_gradient(self) -> tuple[Array, Array]:
        index, padding, outside = self._selected()
        grad, size = np.zeros_like(self.rows.p), np.zeros_like(self.rows.p)
        for j in range(index.shape[1]):
            own = np.arange(grad.shape[1]) == index[:, j, None]
            each = np.where(own, self.rows.one_minus_p, self.rows.p)
            up = np.where(padding[:, j], 0, np.where(outside[:, j], np.nan, self.upstream[:, j]))[:, None]
            grad, size = grad + up * np.where(own, each, -each), size + abs(up) * (each + self._far_p(own))
        return grad, size

    def entropy(self) -> tuple[Array, Array, Array]:
        terms, moved = product(self.rows.p, self.rows.nll), self._entropy_gradient()[0]
        size = (terms + product(self.rows.p, self.rows.far)) * (1 + self._gaps())
        return terms.sum(axis=1), size.sum(axis=1), (abs(moved) * self.sizes).sum(axis=1)

    def _gaps(self) -> Array:
        """m - x', 0 for a class of probability 0."""
        return np.where(np.isfinite(self.rows.gap), self.rows.gap, 0)

    def entropy_gradient(self) -> tuple[Array, Array]:
        value, size = self._entropy_gradient()
        return self.upstream[:, None] * value, abs(self.upstream[:, None]) * size

    def _entropy_gradient(self) -> tuple[Array, Array]:
        p, gaps = self.rows.p, self._gaps()
        mean = product(p, gaps).sum(axis=1, keepdims=True)
        is_pivot = np.arange(p.shape[1]) == self.pivot[:, None]
        # L_c - H = (m - x_c) - sum p (m - x)
        value = np.where(is_pivot, -p * mean, product(p, gaps - mean))
        size = np.where(is_pivot, p * product(p, gaps * (1 + gaps)).sum(axis=1, keepdims=True), 0)
        size = size + np.where(is_pivot, 0, product(p, (gaps + mean) * (1 + gaps)))
        far = product(p, self.rows.far)
        return value, size + (far + p * far.sum(axis=1, keepdims=True)) * (1 + gaps)

    def change(self, moved: Array) -> tuple[Array, Array]:
        """How the gradient changes where x' moves, and the magnitudes of the terms."""
        p, name = self.rows.p, self.call.statistic
        mean, mean_size = ((p * each).sum(axis=1, keepdims=True) for each in (moved, abs(moved)))
        apart, apart_size = moved - mean, abs(moved) + mean_size
        if name == "entropy":
            gaps = self._gaps()
            gap_mean = product(p, gaps).sum(axis=1, keepdims=True)
            surplus, size = gaps - gap_mean, gaps + gap_mean
            value = p * (apart * (surplus - 1) - (p * surplus * moved).sum(axis=1, keepdims=True))
            return value, p * (apart_size * (size + 1) + (p * size * abs(moved)).sum(axis=1, keepdims=True))
        factor: Any = -1 if name == "log_prob" else 1
        if name == "selected_log_prob":
            _, padding, outside = self._selected()
            factor = -np.where(padding, 0, np.where(outside, np.nan, self.upstream)).sum(axis=1, keepdims=True)
        return factor * p * apart, abs(factor) * p * apart_size

    def logsumexp(self) -> tuple[Array, Array, Array]:
        return self.rows.lse, abs(self.rows.shift) + self.rows.lse_minus_shift, self.mean_size

    def logsumexp_gradient(self) -> tuple[Array, Array]:
        up, p = self.upstream[:, None], self.rows.p
        return up * p, abs(up) * (p + product(p, self.rows.far))

    def log_sum_sq(self) -> tuple[Array, Array, Array]:
        others = np.arange(self.rows.p.shape[1]) != self.pivot[:, None]
        ratios = np.where(others, np.exp(-2 * self.rows.gap), 0)
        of_pivot, rest = 2 * self.rows.lse_minus_shift, np.log1p(ratios.sum(axis=1))
        moved_ratios = (ratios * (1 + self._gaps())).sum(axis=1) / (1 + ratios.sum(axis=1))
        p = self.rows.p
        square = p**2 / (p**2).sum(axis=1, keepdims=True)
        moved = 2 * abs(square - p) * self.sizes
        far = 2 * product(square, self.rows.far).sum(axis=1)
        return rest - of_pivot, of_pivot + rest + moved_ratios + far, moved.sum(axis=1)

    def max_prob(self) -> tuple[Array, Array, Array]:
        largest, moved = self.rows.p[self.n, self.pivot], self._nll(self.pivot)[2]
        return largest, largest * (1 + self.rows.far[self.n, self.pivot]), largest * moved

    def prediction(self) -> tuple[Array, Array, Array]:
        return self._exactly(self.pivot)

    def correct(self) -> tuple[Array, Array, Array]:
        return self._exactly(self.pivot == np.asarray(self.call.target).reshape(-1))

    def rank(self) -> tuple[Array, Array, Array]:
        return self._exactly(np.argmax(self._order() == self.index[:, None], axis=1))

    def _exactly(self, value: Array) -> tuple[Array, Array, Array]:
        return value, np.zeros(value.shape), np.zeros(value.shape)

    def _order(self) -> Array:
        """The classes of each row, by logit and then by index; those that do not exist last."""
        keys = np.where(self.exists, -self.rows.logits, np.inf)
        return np.lexsort((np.broadcast_to(~self.exists, keys.shape), keys), axis=1)

    def top_index(self) -> tuple[Array, Array, Array]:
        return self._exactly(self._order()[:, : self.call.options["k"]])

    def top_log_prob(self) -> tuple[Array, Array, Array]:
        return self._nll(self.top_index()[0])

    def mean_logit(self) -> tuple[Array, Array, Array]:
        x: Any = self.rows.logits[:, : self.rows.classes]
        size = abs(x).mean(axis=1)
        return x.mean(axis=1), size, size
