"""Loss and gradient on MindSpore: time and peak memory against `mindspore.ops.cross_entropy`, eagerly and under jit.

    python benchmarks/mindspore_cross_entropy.py [--rows 1024] [--classes 32000] [--rounds 7] [--busy 2]

Both sides run in turn in one process, and what is reported is the median of the rounds' ratios: a machine that is busy
for a while slows both sides of a round. Three lines are of small eager calls, where dispatch is all there is; in one of
them each loss is the first with its options. Memory is the growth of the peak resident set over a call, as a multiple
of the logits, in a process of its own, since MindSpore never gives memory back (Linux only). Where torch is installed
too, its stock loss is timed in the same process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

import unixent
import unixent_mindspore  # noqa: F401 - tells MindSpore's compiler of unixent
from measuring import add_busy_option, by_load, machine, resident_peak

Step = Callable[[Tensor, Tensor], Any]
SCALES = count(1, 2.0**-20)


def ours(logits: Tensor, target: Tensor) -> Any:
    return unixent.cross_entropy(logits, target)


def stock(logits: Tensor, target: Tensor) -> Any:
    return ops.cross_entropy(logits, target)


def first_of_options(logits: Tensor, target: Tensor) -> Any:
    return (unixent.cross_entropy(logits, target, scale=next(SCALES)),) * 2


def ours_and_gradient(logits: Tensor, target: Tensor) -> Any:
    return ms.value_and_grad(ours)(logits, target)


def stock_and_gradient(logits: Tensor, target: Tensor) -> Any:
    return ms.value_and_grad(stock)(logits, target)


FORMS: dict[str, Step] = {
    "ours, eager": ms.value_and_grad(ours),
    "stock, eager": ms.value_and_grad(stock),
    "ours, jit": ms.jit(ours_and_gradient),
    "stock, jit": ms.jit(stock_and_gradient),
}


def stock_of_torch(logits: Tensor, target: Tensor) -> Step:
    """torch's own loss of these logits, and its gradient."""
    import torch

    leaf = torch.from_numpy(logits.asnumpy()).requires_grad_()
    index = torch.from_numpy(target.asnumpy()).long()

    def step(*_: Tensor) -> Any:
        loss = torch.nn.functional.cross_entropy(leaf, index)
        return loss.detach(), *torch.autograd.grad(loss, leaf)

    return step


def seconds(step: Step, logits: Tensor, target: Tensor, calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        for result in step(logits, target):
            result.asnumpy() if isinstance(result, Tensor) else result.numpy()
    return (time.perf_counter() - start) / calls


def peak(step: Step, small: tuple[Tensor, Tensor], large: tuple[Tensor, Tensor]) -> float:
    """By how much a call raises the process's peak memory, as a multiple of the logits; result included."""
    seconds(step, *small)
    return resident_peak(lambda: seconds(step, *large)) / float(large[0].size * large[0].itemsize)


def peak_elsewhere(form: str, chosen: argparse.Namespace) -> float:
    """`peak` in a process of its own."""
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    command = [sys.executable, __file__, "--rows", str(chosen.rows), "--classes", str(chosen.classes), "--peak", form]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def compare(name: str, ours: Step, theirs: Step, logits: Tensor, target: Tensor, rounds: int, calls: int = 1) -> None:
    seconds(ours, logits, target), seconds(theirs, logits, target)
    pairs = [(seconds(ours, logits, target, calls), seconds(theirs, logits, target, calls)) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in pairs)
    times = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
    print(f"{name:14} {times[0]:10.2f} {times[1]:10.2f} {ratio:8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="unixent against mindspore.ops.cross_entropy.")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", choices=list(FORMS), help=argparse.SUPPRESS)
    add_busy_option(parser)
    chosen = parser.parse_args()
    ms.set_device("CPU")
    rng = np.random.default_rng(0)

    def problem(rows: int, classes: int) -> tuple[Tensor, Tensor]:
        logits = Tensor(rng.standard_normal((rows, classes), np.float32))
        return logits, Tensor(rng.integers(classes, size=rows).astype(np.int32))

    if chosen.peak:
        print(peak(FORMS[chosen.peak], problem(32, 100), problem(chosen.rows, chosen.classes)))
        return

    print(f"machine   {machine()}")
    print(f"versions  unixent {unixent.__version__}, MindSpore {ms.__version__}, NumPy {np.__version__}")
    print(f"problem   [{chosen.rows}, {chosen.classes}] float32, mean loss and gradient, {chosen.rounds} rounds\n")
    large = problem(chosen.rows, chosen.classes)
    eager, eager_stock = FORMS["ours, eager"], FORMS["stock, eager"]
    (loss, gradient), (their_loss, their_gradient) = eager(*large), eager_stock(*large)
    np.testing.assert_allclose(loss.asnumpy(), their_loss.asnumpy(), rtol=1e-4)
    np.testing.assert_allclose(gradient.asnumpy(), their_gradient.asnumpy(), rtol=1e-2, atol=1e-9)
    del gradient, their_gradient

    theirs = stock_of_torch(*large) if find_spec("torch") is not None else None
    small = problem(32, 100)

    def measure() -> None:
        print(f"{'':14} {'ours, ms':>10} {'stock, ms':>10} {'ratio':>8}")
        compare("eager", eager, eager_stock, *large, chosen.rounds)
        compare("jit", FORMS["ours, jit"], FORMS["stock, jit"], *large, chosen.rounds)
        if theirs is not None:
            compare("eager, torch", eager, theirs, *large, chosen.rounds)
            compare("jit, torch", FORMS["ours, jit"], theirs, *large, chosen.rounds)
        compare("eager [32,100]", eager, eager_stock, *small, chosen.rounds, 50)
        compare("new options", first_of_options, lambda *a: (stock(*a),) * 2, *small, chosen.rounds, 50)
        compare("loss [32,100]", lambda *a: (ours(*a),) * 2, lambda *a: (stock(*a),) * 2, *small, chosen.rounds, 50)

    if chosen.busy:
        print(f"first on the machine as it is, then beside {chosen.busy} busy processes")
    by_load(chosen.busy, measure)

    print(f"\n{'peak / logits':14} {'ours':>10} {'stock':>10}")
    for name in ("eager", "jit"):
        peaks = peak_elsewhere(f"ours, {name}", chosen), peak_elsewhere(f"stock, {name}", chosen)
        print(f"{name:14} {peaks[0]:10.2f} {peaks[1]:10.2f}")


if __name__ == "__main__":
    main()
