"""Liger-Kernel's Triton cross-entropy; without a GPU, through Triton's interpreter."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

from liger_kernel.transformers.functional import liger_cross_entropy
from triton.runtime.interpreter import InterpreterError

from peers.adapting import flat, only, peer
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
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """Rows (N, C), as it takes them; z_loss is its lse_square_scale. It writes the gradient over its input: a copy."""
    only("axis", axis, -1, logits.ndim - 1)
    if target.is_floating_point():
        raise Unsupported("takes class indices only")
    rows = logits.reshape(-1, logits.shape[-1]).clone()
    try:
        loss: torch.Tensor = liger_cross_entropy(
            rows,
            flat(target, logits.shape[:-1]),
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
            lse_square_scale=z_loss,
            softcap=softcap,
        )
    except InterpreterError as error:  # of the interpreter's own making: on a GPU the kernel is compiled
        raise Unsupported(f"Triton's interpreter cannot run this without a GPU: {error}") from error
    return loss.reshape(logits.shape[:-1]) if reduction == "none" else loss


cross_entropy = peer("liger-kernel", _cross_entropy, "liger-kernel", "triton")
