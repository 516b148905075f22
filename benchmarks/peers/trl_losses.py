"""TRL's log-probability of the chosen token, of logits and fused with the head, as its trainers call them on a CPU."""

from __future__ import annotations

import torch
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import selective_log_softmax

from peers.adapting import flat, nll_reduced, only, peer
from unixent_conformance.harness import Unsupported


def _selective(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    axis: int = -1,
    reduction: str = "mean",
    temperature: float = 1.0,
) -> torch.Tensor:
    only("axis", axis, -1, logits.ndim - 1)
    if target.is_floating_point():
        raise Unsupported("takes class indices only")
    return nll_reduced(selective_log_softmax(logits, target, temperature=temperature), reduction)


def _fused(
    hidden: torch.Tensor,
    classifier: torch.Tensor,
    target: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    normalizer: torch.Tensor | float | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> torch.Tensor:
    """As the head that its SFT trainer puts into a model: labels of -100 are clamped, computed and masked, num_items is
    the normalizer. A chunk is so many classes."""
    only("ignore_index", ignore_index, -100)
    if target.is_floating_point():
        raise Unsupported("takes class indices only")
    labels = flat(target, hidden.shape[:-1])
    known = labels != ignore_index
    log_p = ChunkedLogProbFunction.apply(
        hidden.reshape(-1, hidden.shape[-1]),
        classifier,
        bias,
        labels.clamp(min=0),
        temperature,
        chunk or 8192,
        softcap,
        scale,
        (),
    )[0].masked_fill(~known, 0)
    if reduction == "none":
        loss: torch.Tensor = -log_p.reshape(hidden.shape[:-1])
        return loss
    total: torch.Tensor = -log_p.sum()
    only("reduction", reduction, "sum", "mean")
    if reduction == "sum":
        return total
    return total / (known.sum().clamp(min=1) if normalizer is None else normalizer)


log_softmax = peer("trl selective_log_softmax", _selective, "trl")
fused_head = peer("trl fused head", _fused, "trl")
