"""The truth of the fused linear form: logits h W^T + b in extended precision, then the oracle's rows, then

    dl/dh_n = sum_c g_nc W_c        dl/dW_c = sum_n g_nc h_n        dl/db_c = sum_n g_nc

with g the gradient of the logits that `oracle` gives. Products of two float32 are exact in 64 bits of significand, and
a position that does not count adds nothing, whatever its hidden state holds: its row is taken as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unixent_conformance import oracle
from unixent_conformance.cases.model import Call
from unixent_conformance.oracle import Array, Reduced, Rows

ROW_OPTIONS = ("ignore_index", "label_smoothing", "z_loss", "softcap")


@dataclass(frozen=True)
class LinearRows:
    """The positions of a fused call, solved, and what their logits are made of."""

    rows: Rows
    hidden: Array  # (N, D), 0 where a position does not count
    classifier: Array  # (C, D)
    magnitude: Array  # sum_d |h_d||w_d| + |b|, (N, C): what the roundings of a logit are relative to


def solve(call: Call) -> LinearRows:
    """The rows of a call with hidden, classifier and perhaps bias."""
    wide, narrow = np.longdouble, np.dtype(call.acc_dtype)
    hidden, classifier = call.hidden.astype(wide), call.classifier.astype(wide)
    bias = np.zeros(len(classifier), wide) if call.bias is None else call.bias.astype(wide)
    with np.errstate(all="ignore"):
        logits = hidden @ classifier.T + bias
    target = call.target if call.target.dtype.kind in "iu" else call.target.astype(narrow)
    weight, mask = (None if array is None else array.astype(narrow) for array in (call.weight, call.mask))
    options = {name: call.options[name] for name in ROW_OPTIONS if name in call.options}
    rows = oracle.solve(logits, target, weight=weight, mask=mask, **options)
    counting = (rows.counted != 0) | rows.lost
    flat = np.where(counting[:, None], hidden.reshape(len(counting), hidden.shape[-1]), 0)
    with np.errstate(all="ignore"):
        magnitude = abs(flat) @ abs(classifier).T + abs(bias)
    return LinearRows(rows, flat, classifier, magnitude)


def reduce(found: LinearRows, call: Call) -> Reduced:
    """The reduction that the call asks for."""
    o = call.options
    return oracle.reduce(
        found.rows, str(o.get("reduction", "mean")), o.get("normalizer"), str(o.get("on_empty", "zero"))
    )


def logits_gradient(found: LinearRows, reduced: Reduced, upstream: Array | None) -> Array:
    """d sum(upstream * value)/d logits, (N, C)."""
    rows = found.rows
    gradient = oracle.gradient(rows, reduced, rows.logits_gradients(), upstream)
    return np.asarray(gradient.reshape(len(rows.counted), rows.classes))


def through(found: LinearRows, gradient: Array, name: str) -> Array:
    """A gradient of the logits (N, C) carried back to "hidden" (P + (D,)), "classifier" (C, D) or "bias" (C,)."""
    with np.errstate(all="ignore"):
        if name == "bias":
            return np.asarray(gradient.sum(axis=0))
        if name == "classifier":
            return np.asarray(gradient.T @ found.hidden)
        rows = found.rows
        silent = (rows.counted == 0) & ~rows.lost  # exactly 0, even beside a classifier that holds NaN
        carried = np.where(silent[:, None], 0, gradient @ found.classifier)
        return np.asarray(carried.reshape(*rows.positions, found.classifier.shape[1]))
