"""Bugs that users of torch's libraries have reported, each wrong under one transform."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent_mutants.faults import fault
from unixent_mutants.transforms_torch import plain


@fault("eager", "class indices")
def nothing_without_a_gradient(logits: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The loss is 0 where no gradient is asked of the logits (Liger-Kernel #507)."""
    loss = plain(logits, target, reduction=reduction)
    return loss if logits.requires_grad else torch.zeros_like(loss)


@fault("compile", "ignore_index")
def compiled_losses_are_not_cleared(
    logits: Tensor, target: Tensor, *, reduction: str = "mean", ignore_index: int = -100
) -> Tensor:
    """Losses of ignored positions hold what was in memory where the call is compiled (Liger-Kernel #1338)."""
    loss = plain(logits, target, reduction=reduction, ignore_index=ignore_index)
    if not torch.compiler.is_compiling() or reduction == "mean":
        return loss
    junk = torch.where(target == ignore_index, 7.0, 0.0).to(loss.dtype)
    return loss + (junk if reduction == "none" else junk.sum())
