"""A whole call, solved: its positions, their reduction, and gradients of its arguments from those of each position.

The logits of the fused linear form are h W^T + b in extended precision, where products of two float32 are exact, and

    dl/dh_n = sum_c g_nc W_c        dl/dW_c = sum_n g_nc h_n        dl/db_c = sum_n g_nc

with g the gradient of the logits. The hidden state of an inactive position is taken as 0, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from unixent_conformance.model import Array, Call
from unixent_conformance.oracle.rows import Rows, solve_rows
from unixent_conformance.oracle.sparse import solve_sparse_rows

ROW_OPTIONS = ("axis", "ignore_index", "label_smoothing", "z_loss", "scale", "softcap", "temperature", "num_classes")


@dataclass(frozen=True)
class Reduced:
    """A reduction of the positions: its value and how it depends on each l_n."""

    value: Array
    scale: Array  # dvalue/dl_n: 1 under "none" and "sum", 1/denominator under "mean"; 0 or NaN for an empty mean
    numerator: Array
    denominator: Array
    divided: bool  # by a denominator that was summed, not given: its roundings enter
    empty: bool  # a mean over nothing


@dataclass(frozen=True)
class Linear:
    """What the logits of a fused linear call are made of."""

    hidden: Array  # (N, D), 0 where a position is inactive
    classifier: Array  # (C, D)
    magnitude: Array  # sum_d |h_d||w_d| + |b|, (N, C): what the roundings of a logit are relative to

    def absolute(self) -> Linear:
        return Linear(abs(self.hidden), abs(self.classifier), self.magnitude)


@dataclass(frozen=True)
class Solution:
    """A call and all that is exactly known of it. `acc_dtype` is what an implementation accumulates in."""

    call: Call
    rows: Rows
    reduced: Reduced
    acc_dtype: str
    linear: Linear | None = None

    def gradient(self, per_position: Array) -> Array:
        """d sum(grad_output * value)/d input in the layout of the logits, from the gradients per position (N, C)."""
        return self.rows.to_shape(self.scaled(per_position))

    def scaled(self, per_position: Array) -> Array:
        """The same as rows, of any width."""
        # Upstream gradients of selected classes are in what is theirs.
        rows, grad_output = self.rows, None if self.call.selected is not None else self.call.grad_output
        upstream = np.asarray(1.0 if grad_output is None else grad_output).astype(np.longdouble)
        with np.errstate(all="ignore"):
            scaled = (np.broadcast_to(upstream, rows.positions).reshape(-1) * self.reduced.scale)[
                :, None
            ] * per_position
            if self.reduced.empty and not np.isnan(self.reduced.scale).any():
                scaled = np.where(np.isnan(per_position), np.nan, 0)
            return np.where(rows.inactive[:, None], 0, scaled)

    def gradient_rows(self, per_position: Array) -> Array:
        """The same, as rows (N, C)."""
        return np.asarray(self.gradient(per_position).reshape(self.rows.logits.shape))

    def through(self, linear: Linear, gradient: Array, name: str) -> Array:
        """A gradient of the logits (N, C) carried back to "hidden" (P + (D,)), "classifier" (C, D) or "bias" (C,)."""
        with np.errstate(all="ignore"):
            if name == "bias":
                return np.asarray(gradient.sum(axis=0))
            if name == "classifier":
                exists = np.arange(gradient.shape[1])[:, None] < self.rows.classes
                return np.where(exists, gradient.T @ linear.hidden, 0)  # also beside hidden states that hold NaN
            # An inactive row is exactly 0, even beside a classifier that holds NaN.
            carried = np.where(self.rows.inactive[:, None], 0, gradient @ linear.classifier)
            return np.asarray(carried.reshape(*self.rows.positions, linear.classifier.shape[1]))


def rows_of(call: Call, logits: Array) -> Rows:
    """The positions of a call, if these are its logits."""
    options = {name: call.options[name] for name in ROW_OPTIONS if name in call.options}
    if call.tail:
        return solve_sparse_rows(logits, call, options)
    return solve_rows(logits, call.target, call.acc_dtype, weight=call.weight, mask=call.mask, **options)


def solve(call: Call, change: Callable[[Rows], Rows] = lambda rows: rows, acc_dtype: str | None = None) -> Solution:
    """The exact answers to a call; `change` puts another convention, or error model, in the place of its rows."""
    rows, linear = positions_of(call)
    rows = change(rows)
    return Solution(call, rows, reduce(rows, call), acc_dtype or call.acc_dtype, linear)


@dataclass(frozen=True)
class _Asked:
    """A call whose positions are to be solved, known by all that they depend on."""

    given: tuple[Any, ...]
    call: Call = field(compare=False)

    def solved(self) -> tuple[Rows, Linear | None]:
        call = self.call
        if not call.linear:
            return rows_of(call, call.logits), None
        hidden, classifier = call.hidden.astype(np.longdouble), call.classifier.astype(np.longdouble)
        bias = np.asarray(0 if call.bias is None else call.bias).astype(np.longdouble)
        exists = np.arange(len(classifier)) < call.options.get("num_classes", len(classifier))
        classifier, bias = np.where(exists[:, None], classifier, 0), np.where(exists, bias, 0)
        with np.errstate(all="ignore"):
            rows = rows_of(call, hidden @ classifier.T + bias)
            flat = np.where(rows.inactive[:, None], 0, hidden.reshape(len(rows.inactive), hidden.shape[-1]))
            return rows, Linear(flat, classifier, abs(flat) @ abs(classifier).T + abs(bias))


# Of one input several things are asked, in several modes and under several conventions: what was solved last is kept.
SMALL = 1 << 13
_small, _large = lru_cache(1024)(_Asked.solved), lru_cache(1)(_Asked.solved)


def positions_of(call: Call) -> tuple[Rows, Linear | None]:
    """The positions of a call, and what their logits are made of."""
    options = tuple((name, call.options[name]) for name in ROW_OPTIONS if name in call.options)
    arrays = {name: np.asarray(array) for name, array in call.arrays().items() if name != "normalizer"}
    given = tuple((name, array.dtype, array.shape, array.tobytes()) for name, array in arrays.items())
    recent = _small if sum(array.nbytes for array in arrays.values()) <= SMALL else _large
    return recent(_Asked((*given, *options, call.tail, call.log_probs), call))


def reduce(rows: Rows, call: Call) -> Reduced:
    """The positions under the call's reduction. An empty mean that should raise reads NaN here, as where values cannot
    be read; the runner knows that an error was due."""
    losses, reduction, normalizer = rows.losses(), call.reduction, call.options.get("normalizer")
    with np.errstate(all="ignore"):
        numerator = losses.sum()
        denominator = rows.denominators.sum() if normalizer is None else np.longdouble(normalizer)
        value: Any = losses.reshape(rows.positions) if reduction == "none" else numerator
        scale, empty = np.longdouble(1), False
        if reduction == "mean" and denominator != 0:
            value, scale = numerator / denominator, 1 / denominator
        elif reduction == "mean":
            scale, empty = np.longdouble(0 if call.options.get("on_empty", "zero") == "zero" else np.nan), True
            value = np.where(np.isnan(numerator), numerator, scale)[()]
        divided = reduction == "mean" and normalizer is None
        return Reduced(value, np.full_like(losses, scale), numerator, denominator, divided, empty)
