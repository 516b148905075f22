"""Time and peak memory of `unixent.position_stats` on torch against log-softmax, a gather and the usual entropy.

    python benchmarks/torch_position_stats.py [--rounds 9] [--busy 2]

[1024, 32000] float32: log_prob and entropy, with the gradient of both and without; and the same of the linear form at
2,048 positions, width 512, 32,000 classes against `unixent.linear_cross_entropy`. Both sides run in turn in one
process, and a ratio is the median of the rounds' ratios. Memory is what a call allocates at its peak, as a multiple of
the logits.
"""

from __future__ import annotations

import argparse
import statistics
from typing import NamedTuple

import torch
from torch import Tensor

import unixent
from measuring import add_busy_option, by_load, machine
from torch_cross_entropy import Call, peak, seconds, show

OUTPUTS = ("log_prob", "entropy")


class Problem(NamedTuple):
    """A call of ours, what it is measured beside, and the bytes of the logits."""

    name: str
    ours: Call
    other: Call
    logits_bytes: int


def usual(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    log_p = logits.log_softmax(-1)
    return log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def problems() -> list[Problem]:
    source = torch.Generator().manual_seed(0)
    logits, target = torch.randn(1024, 32000, generator=source), torch.randint(32000, (1024,), generator=source)
    hidden, classifier = (torch.randn(size, 512, generator=source) / 22 for size in (2048, 32000))
    labels = torch.randint(32000, (2048,), generator=source)

    def ours() -> tuple[Tensor, Tensor]:
        stats = unixent.position_stats(logits, target, outputs=OUTPUTS)
        assert stats.log_prob is not None
        assert stats.entropy is not None
        return stats.log_prob, stats.entropy

    def with_gradient(values: tuple[Tensor, Tensor]) -> None:
        (values[0].sum() - 0.01 * values[1].sum()).backward()
        logits.grad = None

    def without(call: Call) -> Call:
        def run() -> None:
            with torch.no_grad():
                call()

        return run

    def linear() -> tuple[Tensor, Tensor]:
        stats = unixent.linear_position_stats(hidden, classifier, labels, outputs=(*OUTPUTS, "correct"))
        assert stats.log_prob is not None
        assert stats.entropy is not None
        return stats.log_prob, stats.entropy

    def loss() -> Tensor:
        return unixent.linear_cross_entropy(hidden, classifier, labels)

    def linear_with_gradient() -> None:
        log_prob, entropy = linear()
        (log_prob.sum() - 0.01 * entropy.sum()).backward()
        hidden.grad = classifier.grad = None

    def loss_with_gradient() -> None:
        loss().backward()
        hidden.grad = classifier.grad = None

    def theirs() -> tuple[Tensor, Tensor]:
        return usual(logits, target)

    for each in (logits, hidden, classifier):
        each.requires_grad_()
    size, linear_size = 4 * logits.numel(), 4 * 2048 * 32000
    return [
        Problem("with gradient", lambda: with_gradient(ours()), lambda: with_gradient(theirs()), size),
        Problem("without", without(ours), without(theirs), size),
        Problem("linear, with correct, with gradient", linear_with_gradient, loss_with_gradient, linear_size),
        Problem("linear, with correct, without", without(linear), without(loss), linear_size),
    ]


def compare(description: str, problems: list[Problem], columns: tuple[str, str, str]) -> None:
    """Parse the options, measure both sides of each problem in turn, and print a table of them.

    Args:
        columns: the headings of the problems, of ours and of what it is measured beside.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=9)
    add_busy_option(parser)
    chosen = parser.parse_args()
    print(f"machine   {machine()}")
    print(f"versions  unixent {unixent.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    busy = ["ratio, busy"] if chosen.busy else []
    heading, ours, other = columns
    rows = [[heading, f"{ours} ms", f"{other} ms", "ratio", *busy, f"{ours} memory", f"{other} memory"]]
    for problem in problems:

        def times(problem: Problem = problem) -> list[tuple[float, float]]:
            problem.ours(), problem.other()
            return [(seconds(problem.ours), seconds(problem.other)) for _ in range(chosen.rounds)]

        loads = by_load(chosen.busy, times)
        milliseconds = [f"{1e3 * statistics.median(side):.0f}" for side in zip(*loads[""], strict=True)]
        ratios = [f"{statistics.median(a / b for a, b in each):.2f}" for each in loads.values()]
        memory = [f"{peak(call) / problem.logits_bytes:.2f}" for call in (problem.ours, problem.other)]
        rows.append([problem.name, *milliseconds, *ratios, *memory])
    show(rows, False)


if __name__ == "__main__":
    compare("Statistics of positions on torch.", problems(), ("problem", "unixent", "usual"))
