"""Every position of a call: losses and gradients from the formulas, in the widest float that NumPy has.

    index targets        l_n = v_n [ (1 - s) w_y L_y + (s/C) sum_c w_c L_c + z lse^2 ]      d_n = v_n w_y
    probability targets  l_n = v_n [ sum_c w_c ((1 - s) q_c + s/C) L_c + z lse^2 ]          d_n = v_n

Both are one formula, l_n = v_n [ sum_c t_c L_c + z lse^2 ], with a row of coefficients t. With m the row maximum, of
the pivot k, and r = sum_{c != k} exp(x_c - m):

    lse = m + log1p(r)        L_c = (m - x_c) + log1p(r)        p_c = exp(x_c - m)/(1 + r)        1 - p_k = r/(1 + r)
    dl_n/dx_c = v_n [ p_c sum_{j != c} t_j  -  t_c (1 - p_c)  +  2 z lse p_c ]

in which nothing cancels, with x' = cap(k x) / T in the place of x. A softcap leaves infinities where they are, with
derivative 0, and classes beyond num_classes are -inf without coefficients, whatever they hold. Everything runs in
`numpy.longdouble` (64 bits of significand on x86, 113 on aarch64 Linux; where it is only float64, `UNIT_ROUNDOFF` says
so and the tolerances allow for it). The tests hold this module against mpmath at 50 digits. It shares no code with any
backend and cares for no speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from unixent_conformance.model import Array

UNIT_ROUNDOFF = float(np.finfo(np.longdouble).eps) / 2


@dataclass(frozen=True)
class Rows:
    """Every position as a row (N, C), in extended precision, before reduction and before the upstream gradient."""

    positions: tuple[int, ...]
    axis: int
    logits: Array  # x', after scale, softcap and temperature
    transform_grad: Array  # dx'/dx
    cap_ratio: (
        Array  # |kx/a|, what the relative error of transform_grad grows with; 0 where there is no cap or an infinity
    )
    inverse_temperature: float  # k/T, what dx'/dx is without a cap
    shift: Array  # m, (N,)
    lse_minus_shift: Array  # log1p(r), (N,)
    gap: Array  # m - x'
    p: Array
    one_minus_p: Array  # 1 - p
    coefs: Array  # t, without v
    rest_coefs: Array  # sum_{j != c} t_j
    target_coef: Array  # w_c (1 - s): dt_c/dq_c
    z_loss: float
    position_weight: Array  # v, (N,)
    denominators: Array  # d, (N,)
    classes: int  # those that exist; the rest of a row is padding
    nan_rows: Array  # rows that are NaN: an index out of range, or no finite log-normaliser at an active position

    @property
    def lse(self) -> Array:
        return self.shift + self.lse_minus_shift

    @property
    def nll(self) -> Array:
        """L, the negative log-probability of every class."""
        return self.gap + self.lse_minus_shift[:, None]

    def settled(self, values: Array) -> Array:
        """Exactly 0 in an inactive row, NaN where nothing can be known."""
        column = (slice(None),) + (None,) * (values.ndim - 1)
        return np.where(self.nan_rows[column], np.nan, np.where(self.position_weight[column] == 0, 0, values))

    @property
    def inactive(self) -> Array:
        """Rows of weight 0, whose gradient is exactly 0 even under a NaN mean."""
        return np.asarray((self.position_weight == 0) & ~self.nan_rows)

    def losses(self) -> Array:
        """l, (N,)."""
        with np.errstate(all="ignore"):
            target_nll = product(self.coefs, self.nll).sum(axis=1)
            z_loss = self.z_loss * self.lse**2 if self.z_loss else 0
            return self.settled(self.position_weight * (target_nll + z_loss))

    def loss_magnitudes(self) -> Array:
        """The sum of the terms' magnitudes; lse counts as |m| + (lse - m), the two numbers it is added up from."""
        with np.errstate(all="ignore"):
            target_nll = product(abs(self.coefs), self.nll).sum(axis=1)
            z_loss = self.z_loss * abs(self.lse) * (abs(self.shift) + self.lse_minus_shift) if self.z_loss else 0
            return self.settled(abs(self.position_weight) * (target_nll + z_loss))

    def logits_gradients(self) -> Array:
        """dl_n/dx_c, (N, C)."""
        with np.errstate(all="ignore"):
            grad = self.p * self.rest_coefs - self.coefs * self.one_minus_p
            if self.z_loss:
                grad = grad + 2 * self.z_loss * self.lse[:, None] * self.p
            return self.settled(self.position_weight[:, None] * self.transform_grad * grad)

    def gradient_magnitudes(self) -> Array:
        """The magnitudes of the terms of dl_n/dx'_c, before dx'/dx."""
        with np.errstate(all="ignore"):
            rest_coefs = sum_of_rest(abs(self.coefs))
            grad = self.p * rest_coefs + abs(self.coefs) * self.one_minus_p
            if self.z_loss:
                grad = grad + 2 * self.z_loss * (abs(self.shift) + self.lse_minus_shift)[:, None] * self.p
            return self.settled(abs(self.position_weight)[:, None] * grad)

    def total_coefs(self) -> Array:
        """The sum of the magnitudes of all coefficients, (N,)."""
        return np.asarray(abs(self.coefs).sum(axis=1))

    @property
    def far(self) -> Array:
        """What the roundings of L_c are relative to beside L_c itself: nothing, but in a dialect's arithmetic."""
        return np.zeros_like(self.p)

    def gradient_roundings(self) -> Array:
        """What an entry's roundings are relative to beside those magnitudes: nothing, but in a dialect's arithmetic."""
        return np.zeros(())

    def loss_roundings(self) -> Array:
        """The same of a loss, beside its magnitude: of the target's own arithmetic."""
        return np.zeros(())

    def moved_loss(self, largest: Array) -> Array:
        """What moving each logit by so much at the most, (N, 1), does to the part of l_n that t has no share in."""
        return np.zeros(())

    def moved_gradient(self, largest: Array) -> Array:
        """The same of dl_n/dx'_c, (N, C), where p_c does not move."""
        return np.zeros(())

    def target_gradients(self) -> Array:
        """dl_n/dq_c, (N, C), for probability targets."""
        with np.errstate(all="ignore"):
            return self.settled(self.position_weight[:, None] * product(self.target_coef, self.nll))

    def target_magnitudes(self) -> Array:
        """The magnitudes of dl_n/dq_c."""
        return np.asarray(abs(self.target_gradients()))

    def target_terms(self, nll: Array) -> Array:
        """What numbers in the place of each L_c, (N, C), come to in the magnitudes of dl_n/dq_c."""
        return np.asarray(abs(self.position_weight)[:, None] * abs(self.target_coef) * nll)

    def from_shape(self, array: Any) -> Array:
        """An array in the layout of the logits as rows (N, C), in extended precision."""
        return np.moveaxis(np.asarray(array), self.axis, -1).astype(np.longdouble).reshape(-1, self.logits.shape[1])

    def to_shape(self, rows: Array) -> Array:
        """Rows (N, C) back in the layout of the logits, exactly 0 at the padding."""
        rows = np.where(np.arange(rows.shape[1]) < self.classes, rows, 0)
        return np.moveaxis(rows.reshape(*self.positions, self.logits.shape[1]), -1, self.axis)


def solve_rows(
    logits: Array,
    target: Array,
    acc_dtype: str,
    *,
    weight: Array | None = None,
    mask: Array | None = None,
    axis: int = -1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    num_classes: int | None = None,
) -> Rows:
    """All that is to be known of each position. weight, mask and probabilities are converted to the accumulation dtype,
    which is part of the definition."""
    axis = axis % logits.ndim
    raw = np.moveaxis(logits, axis, -1)
    positions, width = raw.shape[:-1], raw.shape[-1]
    classes = width if num_classes is None else num_classes
    exists = np.arange(width) < classes
    raw = np.where(exists, raw.astype(np.longdouble).reshape(-1, width), -np.inf)
    with np.errstate(all="ignore"):
        x, cap_ratio, transform_grad = _transformed(raw, scale, softcap, temperature)
        shift = x.max(axis=1)
        gap = shift[:, None] - x
        terms = np.exp(-gap)
        pivot = np.arange(width) == np.argmax(x, axis=1)[:, None]
        # The maximum's own term is 1; NaN there (a NaN or +inf logit, or nothing but -inf) must reach the sum.
        rest = np.where(pivot, terms - 1, terms).sum(axis=1)
        total = 1 + rest
        p = terms / total[:, None]
        one_minus_p = np.where(pivot, rest[:, None], total[:, None] - terms) / total[:, None]

        w = padded_weight(weight, acc_dtype, classes, width)
        v = np.ones(positions) if mask is None else np.broadcast_to(mask.astype(acc_dtype), positions)
        v = v.astype(np.longdouble).reshape(-1)
        s = np.longdouble(label_smoothing)
        if target.dtype.kind in "iu":
            y = target.reshape(-1)
            ignored = y == ignore_index  # NumPy compares by value: -100 is no uint8
            out_of_range = ~ignored & ((y < 0) | (y >= classes))
            safe_index = np.where(ignored | out_of_range, 0, y).astype(np.int64)
            v = np.where(ignored, 0, v)
            q = (np.arange(width) == safe_index[:, None]).astype(np.longdouble)
            denominators = v * np.where(out_of_range, 1, w[safe_index])
        else:
            q = np.moveaxis(target.astype(acc_dtype), axis, -1).astype(np.longdouble).reshape(-1, width)
            q = np.where(exists, q, 0)
            out_of_range = np.zeros(len(x), bool)
            denominators = v
        t = w * ((1 - s) * q + s / classes)
        return Rows(
            positions=positions,
            axis=axis,
            logits=x,
            transform_grad=transform_grad,
            cap_ratio=cap_ratio,
            inverse_temperature=scale / temperature,
            shift=shift,
            lse_minus_shift=np.log1p(rest),
            gap=gap,
            p=p,
            one_minus_p=one_minus_p,
            coefs=t,
            rest_coefs=sum_of_rest(t),
            target_coef=np.broadcast_to(w * (1 - s), t.shape),
            z_loss=float(z_loss),
            position_weight=v,
            denominators=denominators,
            classes=classes,
            nan_rows=out_of_range | (np.isnan(rest) & (v != 0)),
        )


def _transformed(raw: Array, scale: float, softcap: float | None, temperature: float) -> tuple[Array, Array, Array]:
    """x', |k x / a| (0 without a softcap, and where it is infinite), and dx'/dx."""
    x, cap_ratio, transform_grad = np.longdouble(scale) * raw, np.zeros_like(raw), np.ones_like(raw)
    if softcap is not None:
        ratio = x / np.longdouble(softcap)
        decay = np.exp(-2 * abs(ratio))
        x = np.where(np.isinf(raw), raw, np.longdouble(softcap) * np.tanh(ratio))
        cap_ratio, transform_grad = np.where(np.isinf(ratio), 0, abs(ratio)), 4 * decay / (1 + decay) ** 2
    x = x / np.longdouble(temperature)
    return x, cap_ratio, transform_grad * np.longdouble(scale) / np.longdouble(temperature)


def padded_weight(weight: Array | None, acc_dtype: str, classes: int, width: int) -> Array:
    """w_c as it is in the accumulation dtype, 0 at the padding."""
    w = np.ones(classes, np.longdouble) if weight is None else weight.astype(acc_dtype).astype(np.longdouble)
    return np.pad(w, (0, width - classes))


def product(factor: Array, value: Array) -> Array:
    """factor * value with 0 * inf = 0: what has no weight adds nothing."""
    return np.where(factor == 0, 0, factor * np.where(factor == 0, 0, value))


def sum_of_rest(t: Array) -> Array:
    """sum_{j != c} t_j for every c; the largest is left out of its own sum, not subtracted from it."""
    if not t.size:
        return np.zeros_like(t)
    largest = np.arange(t.shape[1]) == np.argmax(abs(t), axis=1)[:, None]
    small = np.where(largest, 0, t)
    rest = small.sum(axis=1, keepdims=True)
    top = np.where(largest, t, 0).sum(axis=1, keepdims=True)
    return np.asarray(np.where(largest, rest, top + (rest - small)))
