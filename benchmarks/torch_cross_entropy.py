"""Time and peak memory of `unixent.cross_entropy` on torch against `torch.nn.functional.cross_entropy`.

    python benchmarks/torch_cross_entropy.py [--compiled] [--rounds 15] [--markdown]

Both sides run in turn in one process, and a ratio is the median of the rounds' ratios: a machine that is busy for a
while slows both sides of a round. "exp" is one pass of ``torch.exp(x, out=buffer)`` over the logits, in the same
rounds: no loss can be faster. Memory is what a call allocates at its peak beyond its inputs, gradient included, by
torch's own account, as a multiple of the logits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import unixent
from measuring import machine

Call = Callable[[], Any]


@dataclass(frozen=True)
class Problem:
    rows: int
    classes: int
    dtype: torch.dtype = torch.float32
    backward: bool = True

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"[{self.rows}, {self.classes}] {dtype}, {'forward+backward' if self.backward else 'forward, no_grad'}"


PROBLEMS = (
    Problem(1024, 32000),
    Problem(256, 128256),
    Problem(1024, 32000, torch.bfloat16),
    Problem(65536, 512),
    Problem(32, 100),
    Problem(1024, 32000, backward=False),
    Problem(256, 128256, backward=False),
)
COMPILED = (Problem(1024, 32000), Problem(256, 128256), Problem(65536, 512))


@dataclass(frozen=True)
class Row:
    """Seconds of both sides and of one exp pass, a round each, and the peaks of both sides."""

    problem: Problem
    ours: list[float]
    stock: list[float]
    exp: list[float]
    memory: tuple[float, float]

    def cells(self) -> list[str]:
        ratios = sorted(a / b for a, b in zip(self.ours, self.stock, strict=True))
        passes = statistics.median(a / b for a, b in zip(self.ours, self.exp, strict=True))
        quarter = len(ratios) // 4
        return [
            str(self.problem),
            f"{1e3 * statistics.median(self.ours):.3g}",
            f"{1e3 * statistics.median(self.stock):.3g}",
            f"{statistics.median(ratios):.2f} ({ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f})",
            f"{passes:.1f}",
            f"{self.memory[0]:.2f}",
            f"{self.memory[1]:.2f}",
        ]


HEADER = ["problem", "unixent ms", "stock ms", "ratio (quartiles)", "in exp passes", "memory", "stock memory"]


def calls(problem: Problem, compiled: bool) -> tuple[Call, Call, Call, torch.Tensor]:
    """One call of each side, the exp pass, and the logits."""
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(problem.rows, problem.classes, generator=source).to(problem.dtype)
    target = torch.randint(problem.classes, (problem.rows,), generator=source)
    buffer = torch.empty_like(logits)
    logits.requires_grad_(problem.backward)

    def step(loss: Callable[..., Any]) -> Call:
        loss = torch.compile(loss, fullgraph=True) if compiled else loss

        def forward() -> None:
            with torch.no_grad():
                loss(logits, target)

        def both() -> None:
            logits.grad = None
            loss(logits, target).backward()

        return both if problem.backward else forward

    def exp() -> None:
        torch.exp(logits.detach(), out=buffer)

    return step(unixent.cross_entropy), step(torch.nn.functional.cross_entropy), exp, logits


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak(call: Call) -> int:
    """Bytes held at the call's peak beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    held = highest = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


def measure(problem: Problem, rounds: int, compiled: bool) -> Row:
    ours, stock, exp, logits = calls(problem, compiled)
    size = logits.numel() * logits.element_size()
    rounds = rounds if size > 1 << 20 else 100 * rounds
    for call in (ours, stock, exp) * 3:  # warm: compilers, allocators, caches
        call()
    times = [(seconds(ours), seconds(stock), seconds(exp)) for _ in range(rounds)]
    columns = [list(column) for column in zip(*times, strict=True)]
    memory = []
    for call in (ours, stock):
        logits.grad = None
        memory.append(peak(call) / size)
    return Row(problem, columns[0], columns[1], columns[2], (memory[0], memory[1]))


def show(rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        print("| " + " | ".join(HEADER) + " |")
        print("|---" + "|---:" * (len(HEADER) - 1) + "|")
        for row in rows:
            print("| " + " | ".join(row) + " |")
        return
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    for row in [HEADER, *rows]:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *rest]))


def main() -> None:
    parser = argparse.ArgumentParser(description="unixent on torch against the stock loss.")
    parser.add_argument("--compiled", action="store_true", help="both sides under torch.compile(fullgraph=True)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    unixent.get_backend("torch")
    print(f"machine   {machine()}")
    print(f"versions  unixent {unixent.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    problems = COMPILED if chosen.compiled else PROBLEMS
    show([measure(problem, chosen.rounds, chosen.compiled).cells() for problem in problems], chosen.markdown)


if __name__ == "__main__":
    main()
