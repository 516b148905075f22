"""`paddle.nn.functional.cross_entropy`."""

from __future__ import annotations

from typing import Any

import paddle
import paddle.nn.functional as F

from peers.adapting import peer

FLOATS = (paddle.float16, paddle.bfloat16, paddle.float32, paddle.float64)


def _cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    """Probability targets are its soft labels. Of these, and smoothed, its losses keep the class axis, of size 1."""
    loss = F.cross_entropy(
        logits,
        target,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        soft_label=target.dtype in FLOATS,
        axis=axis,
        label_smoothing=label_smoothing,
    )
    return loss.squeeze(axis) if reduction == "none" and loss.ndim == logits.ndim else loss


cross_entropy = peer("paddle cross_entropy", _cross_entropy)
