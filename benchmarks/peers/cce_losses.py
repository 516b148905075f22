"""Apple's cut-cross-entropy, its path through `torch.compile`: the Triton one needs a GPU."""

from __future__ import annotations

import torch
import torch._dynamo
from cut_cross_entropy import linear_cross_entropy as cce

from peers.adapting import peer

# One process makes more kinds of calls here than a training run does, each a compilation of the same function.
torch._dynamo.config.recompile_limit = 10_000


def _linear(
    hidden: torch.Tensor,
    classifier: torch.Tensor,
    target: torch.Tensor,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    softcap: float | None = None,
) -> torch.Tensor:
    loss: torch.Tensor = cce(
        hidden,
        classifier,
        target,
        ignore_index=ignore_index,
        softcap=softcap,
        reduction=reduction,
        impl="torch_compile",
    )
    return loss


linear_cross_entropy = peer("cut-cross-entropy", _linear, "cut-cross-entropy")
