"""scipy's `log_softmax`, picked at the target."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special

from peers.adapting import only, peer
from unixent_conformance.model import Array


def _scipy(logits: Array, target: Array, *, axis: int = -1, reduction: str = "mean") -> Any:
    """-log_softmax(logits)[target], or -sum(target * log_softmax(logits))."""
    only("reduction", reduction, "none", "sum", "mean")
    log_p = scipy.special.log_softmax(logits, axis=axis)
    if target.dtype.kind == "f":
        loss = -(target * log_p).sum(axis=axis)
    else:
        loss = -np.take_along_axis(log_p, np.expand_dims(target, axis), axis=axis).squeeze(axis)
    return np.asarray(loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean())


log_softmax = peer("scipy log_softmax", _scipy, "scipy")
