"""`torch.nn.functional.cross_entropy`, and the chunked `linear_cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from peers.adapting import flat, peer
from unixent_conformance.harness import Unsupported


def _cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Classes lie along axis 1 (0 without a position axis)."""
    classes = min(1, logits.ndim - 1)
    if target.is_floating_point():
        target = target.movedim(axis, classes)
    return F.cross_entropy(
        logits.movedim(axis, classes),
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _linear_cross_entropy(
    hidden: torch.Tensor,
    classifier: torch.Tensor,
    target: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> torch.Tensor:
    """Hidden states (N, D): other axes are flattened, as its documentation does for sequences. A chunk is so many
    rows; without one, its own heuristic chooses."""
    options: Any = getattr(torch.nn, "LinearCrossEntropyOptions", None) or _options()
    positions = hidden.shape[:-1]
    if ignore_index is None and not target.is_floating_point():
        ignore_index = -100
    if target.is_floating_point():
        target = target.flatten(0, -2) if target.ndim > 1 else target[None]
    else:
        target = flat(target, positions)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    loss = F.linear_cross_entropy(
        hidden,
        classifier,
        target,
        linear_bias=bias,
        weight=weight,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        options=options() if chunk is None else options(batch_chunk_size=chunk, chunking_method=None),
    )
    return loss.reshape(positions) if reduction == "none" else loss


def _options() -> Any:
    try:
        from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions
    except ImportError as error:
        raise Unsupported(f"this torch has no chunked linear_cross_entropy: {error}") from error
    return LinearCrossEntropyOptions


cross_entropy = peer("torch cross_entropy", _cross_entropy)
linear_cross_entropy = peer("torch linear_cross_entropy", _linear_cross_entropy)
