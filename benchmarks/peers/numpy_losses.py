"""What there is for NumPy: scipy's `log_softmax`, picked at the target, and scikit-learn's `log_loss` of softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special

from peers.adapting import flat, only, peer
from unixent_conformance.harness import Unsupported
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


def _sklearn(
    logits: Array, target: Array, *, mask: Array | None = None, axis: int = -1, reduction: str = "mean"
) -> Any:
    """It takes probabilities, of rows (N, C), and clips them; a mask is its sample_weight."""
    from sklearn.metrics import log_loss

    only("reduction", reduction, "sum", "mean")
    only("axis", axis, -1, logits.ndim - 1)
    if target.dtype.kind == "f":
        raise Unsupported("takes class indices only")
    classes = logits.shape[-1]
    return np.asarray(
        log_loss(
            flat(target, logits.shape[:-1]),
            scipy.special.softmax(logits, axis=-1).reshape(-1, classes),
            normalize=reduction == "mean",
            sample_weight=None if mask is None else mask.reshape(-1),
            labels=np.arange(classes),
        )
    )


scipy_loss = peer("scipy log_softmax", _scipy, "scipy")
sklearn_loss = peer("scikit-learn log_loss", _sklearn, "scikit-learn")
