"""scikit-learn's `log_loss` of softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
from sklearn.metrics import log_loss

from peers.adapting import flat, only, peer
from unixent_conformance.harness import Unsupported
from unixent_conformance.model import Array


def _log_loss(
    logits: Array, target: Array, *, mask: Array | None = None, axis: int = -1, reduction: str = "mean"
) -> Any:
    """It takes probabilities, of rows (N, C), and clips them; a mask is its sample_weight."""
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


of_softmax = peer("scikit-learn log_loss", _log_loss, "scikit-learn", "scipy")
