"""The truth: the loss and its gradients straight from the formulas, in the widest float NumPy has.

    index targets        l_n = v_n [ (1 - s) w_y L_y + (s/C) sum_c w_c L_c + z lse^2 ]      d_n = v_n w_y
    probability targets  l_n = v_n [ sum_c w_c ((1 - s) q_c + s/C) L_c + z lse^2 ]          d_n = v_n

Both are one formula, l_n = v_n [ sum_c t_c L_c + z lse^2 ], with a row of coefficients t. With m the row maximum, held
by class k, and r = sum_{c != k} exp(x_c - m):

    lse = m + log1p(r)        L_c = (m - x_c) + log1p(r)        p_c = exp(x_c - m)/(1 + r)        1 - p_k = r/(1 + r)
    dl_n/dx_c = v_n [ p_c sum_{j != c} t_j  -  t_c (1 - p_c)  +  2 z lse p_c ]

in which nothing cancels. Everything runs in `numpy.longdouble` (64 bits of significand on x86, 113 on aarch64 Linux;
where it is only float64, `UNIT_ROUNDOFF` says so and the tolerances allow for it). The tests hold this module against
mpmath at 50 digits. It shares no code with any backend and cares for no speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

UNIT_ROUNDOFF = float(np.finfo(np.longdouble).eps) / 2


@dataclass(frozen=True)
class Rows:
    """Every position as a row (N, C), in extended precision, before reduction and before the upstream gradient."""

    positions: tuple[int, ...]
    axis: int
    logits: Array  # x', after the softcap
    slope: Array  # dx'/dx
    steepness: Array  # |x/a|, what the relative error of the slope grows with; 0 without a softcap
    peak: Array  # m, (N,)
    spread: Array  # lse - m = log1p(r), (N,)
    gap: Array  # m - x'
    probability: Array  # p
    complement: Array  # 1 - p
    coefficient: Array  # t, without v
    others: Array  # sum_{j != c} t_j
    target_factor: Array  # w_c (1 - s): dt_c/dq_c
    z_loss: float
    counted: Array  # v, (N,)
    denominators: Array  # d, (N,)
    lost: Array  # rows that are NaN: an index out of range, or no finite log-normaliser at a counted position

    @property
    def classes(self) -> int:
        return int(self.logits.shape[1])

    @property
    def lse(self) -> Array:
        return self.peak + self.spread

    @property
    def surprise(self) -> Array:
        """L, the negative log-probability of every class."""
        return self.gap + self.spread[:, None]

    def _settle(self, rows: Array) -> Array:
        """Exactly 0 where nothing counts, NaN where nothing can be known."""
        column = (slice(None),) + (None,) * (rows.ndim - 1)
        return np.where(self.lost[column], np.nan, np.where(self.counted[column] == 0, 0, rows))

    def losses(self) -> Array:
        """l, (N,)."""
        with np.errstate(all="ignore"):
            mixed = _product(self.coefficient, self.surprise).sum(axis=1)
            squared = self.z_loss * self.lse**2 if self.z_loss else 0
            return self._settle(self.counted * (mixed + squared))

    def loss_magnitudes(self) -> Array:
        """The sum of the terms' magnitudes; lse counts as |m| + (lse - m), the two numbers it is added up from."""
        with np.errstate(all="ignore"):
            mixed = _product(abs(self.coefficient), self.surprise).sum(axis=1)
            squared = self.z_loss * abs(self.lse) * (abs(self.peak) + self.spread) if self.z_loss else 0
            return self._settle(abs(self.counted) * (mixed + squared))

    def logits_gradients(self) -> Array:
        """dl_n/dx_c, (N, C)."""
        with np.errstate(all="ignore"):
            flow = self.probability * self.others - self.coefficient * self.complement
            if self.z_loss:
                flow = flow + 2 * self.z_loss * self.lse[:, None] * self.probability
            return self._settle(self.counted[:, None] * self.slope * flow)

    def gradient_magnitudes(self) -> Array:
        """The magnitudes of the terms of dl_n/dx'_c: what flows between the classes, before the softcap's slope."""
        with np.errstate(all="ignore"):
            others = sum_of_others(abs(self.coefficient))
            flow = self.probability * others + abs(self.coefficient) * self.complement
            if self.z_loss:
                flow = flow + 2 * self.z_loss * (abs(self.peak) + self.spread)[:, None] * self.probability
            return self._settle(abs(self.counted)[:, None] * flow)

    def target_gradients(self) -> Array:
        """dl_n/dq_c, (N, C), for probability targets."""
        with np.errstate(all="ignore"):
            return self._settle(self.counted[:, None] * _product(self.target_factor, self.surprise))

    def target_magnitudes(self) -> Array:
        """The magnitudes of dl_n/dq_c."""
        return np.asarray(abs(self.target_gradients()))

    def to_shape(self, rows: Array) -> Array:
        """Rows (N, C) back in the layout of the logits."""
        return np.moveaxis(rows.reshape(*self.positions, self.classes), -1, self.axis)


@dataclass(frozen=True)
class Reduced:
    """A reduction of the positions: its value and how it depends on each l_n."""

    value: Array
    scale: Array  # dvalue/dl_n: 1 under "none" and "sum", 1/denominator under "mean"; 0 or NaN for an empty mean
    numerator: Array
    denominator: Array
    divided: bool  # by a denominator that was summed, not given: its roundings enter
    empty: bool  # a mean over nothing


def solve(
    logits: Array,
    target: Array,
    *,
    weight: Array | None = None,
    mask: Array | None = None,
    axis: int = -1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Rows:
    """All that is to be known of each position. weight, mask and probabilities come in the accumulation dtype or
    narrower: converting them to it is part of the definition (see `acc_dtype`)."""
    axis = axis % logits.ndim
    narrow = acc_dtype(logits.dtype)
    raw = np.moveaxis(logits, axis, -1)
    positions, classes = raw.shape[:-1], raw.shape[-1]
    raw = raw.astype(np.longdouble).reshape(-1, classes)
    with np.errstate(all="ignore"):
        steepness = np.zeros_like(raw) if softcap is None else abs(raw) / np.longdouble(softcap)
        decay = np.exp(-2 * steepness)
        x = raw if softcap is None else np.longdouble(softcap) * np.tanh(raw / np.longdouble(softcap))
        slope = np.ones_like(raw) if softcap is None else 4 * decay / (1 + decay) ** 2

        peak = x.max(axis=1)
        gap = peak[:, None] - x
        terms = np.exp(-gap)
        holder = np.arange(classes) == np.argmax(x, axis=1)[:, None]
        # The maximum's own term is 1; NaN there (a NaN or +inf logit, or nothing but -inf) must reach the sum.
        rest = np.where(holder, terms - 1, terms).sum(axis=1)
        total = 1 + rest
        probability = terms / total[:, None]
        complement = np.where(holder, rest[:, None], total[:, None] - terms) / total[:, None]

        w = np.ones(classes, np.longdouble) if weight is None else weight.astype(narrow).astype(np.longdouble)
        v = np.ones(len(x), np.longdouble) if mask is None else mask.astype(narrow).astype(np.longdouble).reshape(-1)
        s = np.longdouble(label_smoothing)
        if target.dtype.kind in "iu":
            y = target.reshape(-1)
            ignored = y == ignore_index  # NumPy compares by value: -100 is no uint8
            strayed = ~ignored & ((y < 0) | (y >= classes))
            chosen = np.where(ignored | strayed, 0, y).astype(np.int64)
            v = np.where(ignored, 0, v)
            q = (np.arange(classes) == chosen[:, None]).astype(np.longdouble)
            denominators = v * w[chosen]
        else:
            q = np.moveaxis(target.astype(narrow), axis, -1).astype(np.longdouble).reshape(-1, classes)
            strayed = np.zeros(len(x), bool)
            denominators = v
        t = w * ((1 - s) * q + s / classes)
        return Rows(
            positions=positions,
            axis=axis,
            logits=x,
            slope=slope,
            steepness=steepness,
            peak=peak,
            spread=np.log1p(rest),
            gap=gap,
            probability=probability,
            complement=complement,
            coefficient=t,
            others=sum_of_others(t),
            target_factor=np.broadcast_to(w * (1 - s), t.shape),
            z_loss=float(z_loss),
            counted=v,
            denominators=denominators,
            lost=strayed | (np.isnan(rest) & (v != 0)),
        )


def reduce(rows: Rows, reduction: str, normalizer: Any = None, on_empty: str = "zero") -> Reduced:
    """The positions under "none", "sum" or "mean". An empty mean that should raise reads NaN here, as where values
    cannot be read; the runner knows from `empty` that an error was due."""
    losses = rows.losses()
    with np.errstate(all="ignore"):
        numerator = losses.sum()
        denominator = rows.denominators.sum() if normalizer is None else np.longdouble(normalizer)
        if reduction == "none":
            value, scale, empty = losses.reshape(rows.positions), np.longdouble(1), False
        elif reduction == "sum":
            value, scale, empty = numerator, np.longdouble(1), False
        elif denominator != 0:
            value, scale, empty = numerator / denominator, 1 / denominator, False
        else:
            value = scale = np.longdouble(0 if on_empty == "zero" else np.nan)
            empty = True
        divided = reduction == "mean" and normalizer is None
        return Reduced(value, np.full_like(losses, scale), numerator, denominator, divided, empty)


def gradient(rows: Rows, reduced: Reduced, per_position: Array, upstream: Array | None) -> Array:
    """d sum(upstream * value)/d input in the layout of the logits, from the gradients per position (N, C)."""
    if upstream is None:
        up = np.ones(len(rows.counted), np.longdouble)
    else:
        up = np.broadcast_to(upstream.astype(np.longdouble), rows.positions).reshape(-1)
    with np.errstate(all="ignore"):
        scaled = (up * reduced.scale)[:, None] * per_position
        # An uncounted row is exactly 0 even under a NaN mean.
        silent = (rows.counted == 0) & ~rows.lost
        if reduced.empty and not np.isnan(reduced.value):
            scaled = np.zeros_like(scaled)
        return rows.to_shape(np.where(silent[:, None], 0, scaled))


def acc_dtype(dtype: Any) -> np.dtype[Any]:
    """float32 for half precision, otherwise the dtype itself."""
    return np.dtype(np.float32 if np.dtype(dtype).itemsize == 2 else dtype)


def _product(factor: Array, value: Array) -> Array:
    """factor * value with 0 * inf = 0: what has no weight adds nothing."""
    return np.where(factor == 0, 0, factor * np.where(factor == 0, 0, value))


def sum_of_others(t: Array) -> Array:
    """sum_{j != c} t_j for every c; the largest is left out of its own sum, not subtracted from it."""
    if not t.size:
        return np.zeros_like(t)
    largest = np.arange(t.shape[1]) == np.argmax(abs(t), axis=1)[:, None]
    small = np.where(largest, 0, t)
    rest = small.sum(axis=1, keepdims=True)
    top = np.where(largest, t, 0).sum(axis=1, keepdims=True)
    return np.asarray(np.where(largest, rest, top + (rest - small)))
