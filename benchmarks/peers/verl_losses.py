"""verl's log-probability of the chosen token, of logits and fused with the head, without the packages that its workers
need: the files of these functions are loaded alone."""

from __future__ import annotations

import torch

from peers.adapting import load_file, nll_reduced, only, peer
from unixent_conformance.harness import Unsupported

of_logits = load_file(
    "verl", "verl/utils/torch_functional.py", ("tensordict", "verl", "verl.utils", "verl.utils.device")
)
fused = load_file("verl", "verl/utils/experimental/torch_functional.py")


def _logprobs(logits: torch.Tensor, target: torch.Tensor, *, axis: int = -1, reduction: str = "mean") -> torch.Tensor:
    """Its path without flash-attention."""
    only("axis", axis, -1, logits.ndim - 1)
    if target.is_floating_point():
        raise Unsupported("takes class indices only")
    return nll_reduced(of_logits.logprobs_from_logits_v2(logits, target), reduction)


def _fused(
    hidden: torch.Tensor,
    classifier: torch.Tensor,
    target: torch.Tensor,
    *,
    reduction: str = "mean",
    temperature: float = 1.0,
    chunk: int | None = None,
) -> torch.Tensor:
    if target.is_floating_point():
        raise Unsupported("takes class indices only")
    module = fused.FusedLinearForPPO(**({} if chunk is None else {"chunk_size": chunk}))
    return nll_reduced(module(hidden, classifier, target, temperature=temperature)[0], reduction)


logprobs = peer("verl logprobs_from_logits", _logprobs, "verl")
fused_linear = peer("verl FusedLinearForPPO", _fused, "verl")
