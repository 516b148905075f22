"""`mlx.nn.losses.cross_entropy`, on the CPU."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn

from peers.adapting import peer


def _cross_entropy(
    logits: Any,
    target: Any,
    *,
    mask: Any = None,
    axis: int = -1,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """A mask is its weights, one for each position."""
    return nn.losses.cross_entropy(
        logits, target, weights=mask, axis=axis, label_smoothing=label_smoothing, reduction=reduction
    )


cross_entropy = peer("mlx cross_entropy", _cross_entropy)
