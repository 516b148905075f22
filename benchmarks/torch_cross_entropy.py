"""Time and peak memory of `unixent.cross_entropy` on torch against `torch.nn.functional.cross_entropy`.

    python benchmarks/torch_cross_entropy.py [--compiled] [--rounds 15] [--busy 2] [--markdown]

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
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import unixent
from measuring import add_busy_option, by_load, machine

Call = Callable[[], Any]


@dataclass(frozen=True)
class Problem:
    rows: int
    classes: int
    dtype: torch.dtype = torch.float32
    backward: bool = True
    image: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the logits: those of an image have their classes along the second axis."""
        return (self.rows, self.classes, *self.image)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{list(self.shape)} {dtype}, {'forward+backward' if self.backward else 'forward, no_grad'}"


PROBLEMS = (
    Problem(1024, 32000),
    Problem(256, 128256),
    Problem(1024, 32000, torch.bfloat16),
    Problem(65536, 512),
    Problem(32, 100),
    Problem(4096, 100),
    Problem(4, 21, image=(256, 256)),
    Problem(1024, 32000, backward=False),
    Problem(256, 128256, backward=False),
)
COMPILED = (Problem(1024, 32000), Problem(256, 128256), Problem(65536, 512))


# Seconds of unixent, of the stock loss and of one exp pass.
Times = tuple[float, float, float]


def ratio(rounds: list[Times]) -> str:
    """The median of the rounds' ratios, and their quartiles."""
    ratios = sorted(ours / stock for ours, stock, _ in rounds)
    quarter = len(ratios) // 4
    return f"{statistics.median(ratios):.2f} ({ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f})"


def cells(problem: Problem, measured: dict[str, list[Times]], memory: list[float]) -> list[str]:
    """A row of the table."""
    idle, *busy = measured.values()
    ours, stock, _ = zip(*idle, strict=True)
    passes = statistics.median(ours / exp for ours, _, exp in idle)
    times = [f"{1e3 * statistics.median(side):.3g}" for side in (ours, stock)]
    ratios = [ratio(idle), f"{passes:.1f}", *map(ratio, busy)]
    return [str(problem), *times, *ratios, *(f"{each:.2f}" for each in memory)]


def header(busy: int) -> list[str]:
    beside = [f"ratio, {busy} busy"] if busy else []
    return [
        "problem",
        "unixent ms",
        "stock ms",
        "ratio (quartiles)",
        "in exp passes",
        *beside,
        "memory",
        "stock memory",
    ]


def calls(problem: Problem, compiled: bool) -> tuple[Call, Call, Call, torch.Tensor]:
    """One call of each side, the exp pass, and the logits."""
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(problem.shape, generator=source).to(problem.dtype)
    target = torch.randint(problem.classes, (problem.rows, *problem.image), generator=source)
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

    ours = partial(unixent.cross_entropy, axis=1) if problem.image else unixent.cross_entropy
    return step(ours), step(torch.nn.functional.cross_entropy), exp, logits


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


def measure(problem: Problem, rounds: int, compiled: bool, busy: int) -> list[str]:
    ours, stock, exp, logits = calls(problem, compiled)
    size = logits.numel() * logits.element_size()
    rounds = rounds if size > 1 << 20 else 100 * rounds

    def times() -> list[Times]:
        for call in (ours, stock, exp) * 3:  # warm: compilers, allocators, caches
            call()
        return [(seconds(ours), seconds(stock), seconds(exp)) for _ in range(rounds)]

    measured = by_load(busy, times)
    memory = []
    for call in (ours, stock):
        logits.grad = None
        memory.append(peak(call) / size)
    return cells(problem, measured, memory)


def show(rows: list[list[str]], markdown: bool) -> None:
    """A table whose first row is its head."""
    if markdown:
        rows = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
        print(*("| " + " | ".join(row) + " |" for row in rows), sep="\n")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]))


def main() -> None:
    parser = argparse.ArgumentParser(description="unixent on torch against the stock loss.")
    parser.add_argument("--compiled", action="store_true", help="both sides under torch.compile(fullgraph=True)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--markdown", action="store_true")
    add_busy_option(parser)
    chosen = parser.parse_args()
    unixent.get_backend("torch")
    print(f"machine   {machine()}")
    print(f"versions  unixent {unixent.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    problems = COMPILED if chosen.compiled else PROBLEMS
    rows = [measure(problem, chosen.rounds, chosen.compiled, chosen.busy) for problem in problems]
    show([header(chosen.busy), *rows], chosen.markdown)


if __name__ == "__main__":
    main()
