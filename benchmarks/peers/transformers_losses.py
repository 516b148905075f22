"""transformers' causal language-modelling loss, with labels that are shifted already."""

from __future__ import annotations

import torch
from transformers.loss.loss_utils import ForCausalLMLoss

from peers.adapting import only, peer


def _causal_lm(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    reduction: str = "mean",
    ignore_index: int = -100,
    normalizer: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """num_items_in_batch is the normalizer."""
    only("reduction", reduction, "mean")
    loss: torch.Tensor = ForCausalLMLoss(
        logits,
        target,
        vocab_size=logits.shape[-1],
        num_items_in_batch=normalizer,
        ignore_index=ignore_index,
        shift_labels=target,
    )
    return loss


causal_lm = peer("transformers causal LM loss", _causal_lm, "transformers")
