"""Liger-Kernel's Triton losses, of logits and fused with the classifier, through Triton's interpreter."""

from __future__ import annotations

import torch

from unixent_conformance import triton_interpreter

triton_interpreter.enable()

from liger_kernel.transformers.functional import liger_cross_entropy, liger_fused_linear_cross_entropy  # noqa: E402

from peers.adapting import flat, only, peer  # noqa: E402
from unixent_conformance.harness import Unsupported  # noqa: E402


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
    return loss.reshape(logits.shape[:-1]) if reduction == "none" else loss


def _linear(
    hidden: torch.Tensor,
    classifier: torch.Tensor,
    target: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> torch.Tensor:
    if target.is_floating_point():
        raise Unsupported("takes class indices only")
    loss: torch.Tensor = liger_fused_linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        classifier,
        flat(target, hidden.shape[:-1]),
        bias=bias,
        ce_weight=weight,
        ignore_index=ignore_index,
        lse_square_scale=z_loss,
        label_smoothing=label_smoothing,
        reduction=reduction,
        softcap=softcap,
    )
    return loss.reshape(hidden.shape[:-1]) if reduction == "none" else loss


linear_cross_entropy = peer("liger-kernel linear", _linear, "liger-kernel", "triton")
cross_entropy = peer("liger-kernel", _cross_entropy, "liger-kernel", "triton")
