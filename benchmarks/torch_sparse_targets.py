"""Time and peak memory of a loss with sparse targets on torch against that of class indices.

    python benchmarks/torch_sparse_targets.py [--rounds 9] [--busy 2]

[1024, 32000] float32, forward and backward: `unixent.cross_entropy` of a `unixent.TopK` of 20 classes a position, for
each tail, against the same of class indices, and against the usual log-softmax, gather and sum. All run in turn in one
process, and a ratio is the median of the rounds' ratios. Memory is what a call allocates at its peak, as a multiple of
the logits.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor

import unixent
from measuring import add_busy_option, by_load, machine
from torch_cross_entropy import Call, peak, seconds, show


def problems() -> tuple[Call, dict[str, Call], int]:
    """The loss of class indices, the others, and the bytes of the logits."""
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

    calls = {f"TopK, {name}": tail(tail=name) for name in ("drop", "renormalize", "bucket")}
    return lambda: step(unixent.cross_entropy(logits, target)), {**calls, "the usual sum": usual}, 4 * logits.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description="Losses with sparse targets on torch against those of class indices.")
    parser.add_argument("--rounds", type=int, default=9)
    add_busy_option(parser)
    chosen = parser.parse_args()
    print(f"machine   {machine()}")
    print(f"versions  unixent {unixent.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    busy = ["ratio, busy"] if chosen.busy else []
    rows = [["loss", "ms", "class indices ms", "ratio", *busy, "memory", "indices' memory"]]
    indices, others, size = problems()
    for name, other in others.items():

        def times(other: Call = other) -> list[tuple[float, float]]:
            other(), indices()
            return [(seconds(other), seconds(indices)) for _ in range(chosen.rounds)]

        loads = by_load(chosen.busy, times)
        milliseconds = [f"{1e3 * statistics.median(side):.0f}" for side in zip(*loads[""], strict=True)]
        ratios = [f"{statistics.median(a / b for a, b in each):.2f}" for each in loads.values()]
        rows.append([name, *milliseconds, *ratios, f"{peak(other) / size:.2f}", f"{peak(indices) / size:.2f}"])
    show(rows, False)


if __name__ == "__main__":
    main()
