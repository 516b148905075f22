"""Time and peak memory of a loss with sparse targets on torch against that of class indices.

    python benchmarks/torch_sparse_targets.py [--rounds 9] [--busy 2]

[1024, 32000] float32, forward and backward: `unixent.cross_entropy` of a `unixent.TopK` of 20 classes a position, for
each tail, against the same of class indices, and against the usual log-softmax, gather and sum. All run in turn in one
process, and a ratio is the median of the rounds' ratios. Memory is what a call allocates at its peak, as a multiple of
the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

import unixent
from torch_cross_entropy import Call
from torch_position_stats import Problem, compare


def problems() -> list[Problem]:
    source = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(1024, 32000, generator=source), torch.randn(1024, 32000, generator=source)
    log_probs, ids = (5 * teacher).log_softmax(-1).topk(20)
    target, probs = ids[:, 0].clone(), log_probs.exp()
    logits.requires_grad_()

    def step(loss: Tensor) -> None:
        logits.grad = None
        loss.backward()

    def usual() -> None:
        step(-(probs * logits.log_softmax(-1).gather(-1, ids)).sum(-1).mean())

    def tail(**options: str) -> Call:
        target: unixent.TopK = unixent.TopK(ids, log_probs=log_probs, **options)  # type: ignore[arg-type]
        return lambda: step(unixent.cross_entropy(logits, target))

    def indices() -> None:
        step(unixent.cross_entropy(logits, target))

    calls = {f"TopK, {name}": tail(tail=name) for name in ("drop", "renormalize", "bucket")}
    calls["the usual sum"] = usual
    return [Problem(name, call, indices, 4 * logits.numel()) for name, call in calls.items()]


if __name__ == "__main__":
    compare("Losses with sparse targets on torch.", problems(), ("loss", "sparse", "indices"))
