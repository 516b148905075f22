"""Apple's cut-cross-entropy: its path through `torch.compile`, and its Triton kernels through the interpreter."""

from __future__ import annotations

from typing import Any

import torch

from unixent_conformance import triton_interpreter

triton_interpreter.enable()

import torch._dynamo  # noqa: E402
from cut_cross_entropy import linear_cross_entropy as cce  # noqa: E402

from peers.adapting import peer  # noqa: E402

# One process makes more kinds of calls here than a training run does, each a compilation of the same function.
torch._dynamo.config.recompile_limit = 10_000


def _linear(implementation: str) -> Any:
    def linear(
        hidden: torch.Tensor,
        classifier: torch.Tensor,
        target: torch.Tensor,
        *,
        reduction: str = "mean",
        ignore_index: int = -100,
        softcap: float | None = None,
    ) -> torch.Tensor:
        options = {"reduction": reduction, "ignore_index": ignore_index, "softcap": softcap, "impl": implementation}
        loss: torch.Tensor = cce(hidden, classifier, target, **options)
        return loss

    return linear


linear_cross_entropy = peer("cut-cross-entropy", _linear("torch_compile"), "cut-cross-entropy")
triton_kernels = peer("cut-cross-entropy triton", _linear("cce"), "cut-cross-entropy", "triton")
