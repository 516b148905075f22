"""What the seams of reinforcement learning share: log-probability and entropy in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.positions import position_stats


def wide_dtype(tensor: Tensor) -> str:
    """float32, or float64 for float64: ratios of probabilities that are rounded to half precision start far from 1."""
    return "float64" if tensor.dtype == torch.float64 else "float32"


def log_probs_of(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log softmax(logits / temperature) at ``index`` P, and the entropy; 0 where ``index`` is -100 or the mask is 0."""
    if row_mask is not None:
        row_mask = row_mask != 0
    outputs = ("log_prob", "entropy") if entropy else ("log_prob",)
    dtype = wide_dtype(logits)
    stats = position_stats(logits, index, outputs=outputs, mask=row_mask, temperature=temperature, dtype=dtype)
    return stats.log_prob, stats.entropy


def entropy_of_logits(logits: Tensor) -> Tensor:
    """-sum p log p of softmax(logits), with 0 log 0 = 0."""
    return position_stats(logits, outputs="entropy", dtype=wide_dtype(logits)).entropy
