"""The fused linear form on torch against F.cross_entropy(F.linear(...)) and torch's own chunked form.

    python benchmarks/torch_linear_cross_entropy.py [--positions 2048 --width 512 --classes 32000 --busy 2]

Forward and backward, interleaved in one process: the median of the rounds' seconds, and the medians of their ratios to
the unfused form, of wall-clock and of processor time. On a busy machine, trust the latter with --threads 1. Peak memory
is the resident memory that a second pass needs beyond what was there, in a process of its own for each form, in units
of the logits, of which the gradients themselves are the share shown last.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import unixent
from measuring import add_busy_option, by_load, resident_peak

Inputs = tuple[Tensor, Tensor, Tensor]


def unfused(hidden: Tensor, classifier: Tensor, target: Tensor) -> None:
    F.cross_entropy(F.linear(hidden, classifier), target).backward()


def stock(hidden: Tensor, classifier: Tensor, target: Tensor) -> None:
    options = torch.nn.LinearCrossEntropyOptions()
    F.linear_cross_entropy(hidden, classifier, target, options=options).backward()


def fused(hidden: Tensor, classifier: Tensor, target: Tensor) -> None:
    unixent.linear_cross_entropy(hidden, classifier, target).backward()


def products(hidden: Tensor, classifier: Tensor, target: Tensor) -> None:
    """The three matrix products and nothing else: no form can be faster."""
    with torch.no_grad():
        logits = hidden @ classifier.T
        hidden.grad, classifier.grad = logits @ classifier, logits.T @ hidden


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "F.cross_entropy(F.linear(...))": unfused,
    "F.linear_cross_entropy(options=LinearCrossEntropyOptions())": stock,
    "unixent.linear_cross_entropy": fused,
    "three matrix products": products,
}


def make(positions: int, width: int, classes: int, dtype: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    torch_dtype = getattr(torch, dtype)
    hidden = torch.randn(positions, width, generator=generator).to(torch_dtype).requires_grad_()
    classifier = (torch.randn(classes, width, generator=generator) / width**0.5).to(torch_dtype).requires_grad_()
    return hidden, classifier, torch.randint(classes, (positions,), generator=generator)


def run(name: str, inputs: Inputs) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, that one forward and backward pass takes."""
    for x in inputs[:2]:
        x.grad = None
    start, processor = time.perf_counter(), time.process_time()
    FORMS[name](*inputs)
    return time.perf_counter() - start, time.process_time() - processor


def peak(name: str, inputs: Inputs) -> int:
    """Bytes of resident memory that one pass needs beyond what is there before it."""
    run(name, inputs)
    for x in inputs[:2]:
        x.grad = None
    return resident_peak(lambda: run(name, inputs))


def peak_elsewhere(name: str, arguments: list[str]) -> int:
    command = [sys.executable, __file__, *arguments, "--peak", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    add_busy_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    inputs = make(options.positions, options.width, options.classes, options.dtype)
    if options.peak:
        print(peak(options.peak, inputs))
        return
    hidden, classifier, _ = inputs
    logits = options.positions * options.classes * hidden.element_size()

    def measure() -> dict[str, list[tuple[float, float]]]:
        rounds = [{name: run(name, inputs) for name in FORMS} for _ in range(options.rounds + 1)]
        return {name: [times[name] for times in rounds[1:]] for name in FORMS}  # the first round warms up

    measured = by_load(options.busy, measure)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"positions {options.positions}, width {options.width}, classes {options.classes}, {options.dtype}\n")
    columns = " | ".join(f"seconds{load} | / unfused{load} | processor time / unfused{load}" for load in measured)
    print(f"| form | {columns} | peak memory / logits |\n|---|{'---|---|---|' * len(measured)}---|")
    for name in FORMS:
        cells = []
        for times in measured.values():
            ratios = [(a / b, c / d) for (a, c), (b, d) in zip(times[name], next(iter(times.values())), strict=True)]
            wall, processor = (statistics.median(ratio) for ratio in zip(*ratios, strict=True))
            cells += [statistics.median(wall for wall, _ in times[name]), wall, processor]
        memory = peak_elsewhere(name, sys.argv[1:]) / logits
        print(f"| `{name}` | {' | '.join(f'{cell:.2f}' for cell in cells)} | {memory:.2f} |", flush=True)
    gradients = sum(x.numel() * x.element_size() for x in (hidden, classifier))
    print(f"| the gradients themselves | {'| | | ' * len(measured)}| {gradients / logits:.2f} |")


if __name__ == "__main__":
    main()
