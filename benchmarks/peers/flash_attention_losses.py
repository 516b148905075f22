"""flash-attention's Triton cross-entropy, through Triton's interpreter.

`flash_attn` cannot be imported without its CUDA extension, which the file of this loss does not use: it is loaded
alone. Reductions are those of `flash_attn.losses.cross_entropy`, which takes CUDA tensors only.
"""

from __future__ import annotations

import torch

from unixent_conformance import triton_interpreter

triton_interpreter.enable()

from peers.adapting import flat, load_file, only, peer  # noqa: E402
from unixent_conformance.harness import Unsupported  # noqa: E402

kernels = load_file("flash-attn", "flash_attn/ops/triton/cross_entropy.py")


def _cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    scale: float = 1.0,
) -> torch.Tensor:
    """Rows (N, C), as it takes them; z_loss is its lse_square_scale, scale its logit_scale."""
    only("axis", axis, -1, logits.ndim - 1)
    only("reduction", reduction, "none", "sum", "mean")
    if target.is_floating_point():
        raise Unsupported("takes class indices only")
    rows = flat(target, logits.shape[:-1])
    loss: torch.Tensor
    loss, _ = kernels.cross_entropy_loss(
        logits.reshape(-1, logits.shape[-1]),
        rows,
        label_smoothing=label_smoothing,
        logit_scale=scale,
        lse_square_scale=z_loss,
        ignore_index=ignore_index,
    )
    if reduction == "none":
        return loss.reshape(logits.shape[:-1])
    return loss.sum() / (rows != ignore_index).sum() if reduction == "mean" else loss.sum()


cross_entropy = peer("flash-attention", _cross_entropy, "flash-attn", "triton")
