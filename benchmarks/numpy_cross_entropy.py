"""Loss and gradient on NumPy: time and peak memory of `unixent.value_and_grad` against the form that SciPy users write.

    python benchmarks/numpy_cross_entropy.py [--rows 1024] [--classes 32000] [--rounds 15] [--busy 2]

Both sides run in turn in one process, and what is reported is the median of the rounds' ratios: a machine that is
busy for a while slows both sides of a round. Memory is what the call allocates beyond its inputs, result included.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.special import log_softmax

import unixent
from measuring import add_busy_option, by_load, machine, traced_peak

Array = np.ndarray[Any, Any]
Loss = Callable[[Array, Array], tuple[Any, Array]]


def scipy_form(logits: Array, target: Array) -> tuple[Any, Array]:
    """log_softmax, gather, exp, subtract the one-hot, divide."""
    rows = np.arange(len(logits))
    logs = log_softmax(logits, axis=1)
    loss = -logs[rows, target].mean()
    gradient = np.exp(logs)
    gradient[rows, target] -= 1
    gradient /= len(logits)
    return loss, gradient


def seconds(function: Loss, logits: Array, target: Array) -> float:
    start = time.perf_counter()
    function(logits, target)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="unixent on NumPy against the SciPy form.")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=15)
    add_busy_option(parser)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((chosen.rows, chosen.classes), np.float32)
    target = rng.integers(chosen.classes, size=chosen.rows)

    ours, theirs = unixent.value_and_grad(logits, target), scipy_form(logits, target)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-3)
    del ours, theirs

    def measure() -> list[tuple[float, float]]:
        return [
            (seconds(unixent.value_and_grad, logits, target), seconds(scipy_form, logits, target))
            for _ in range(chosen.rounds)
        ]

    measured = by_load(chosen.busy, measure)

    print(f"machine   {machine()}")
    print(f"versions  unixent {unixent.__version__}, NumPy {np.__version__}, Python {platform.python_version()}")
    print(f"problem   [{chosen.rows}, {chosen.classes}] float32, mean loss and gradient, {chosen.rounds} rounds\n")
    print("                    unixent   SciPy form   ratio")
    for load, rounds in measured.items():
        ratios = sorted(ours / theirs for ours, theirs in rounds)
        own, other = (1e3 * statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{'time (ms)' + load:18} {own:8.1f}   {other:10.1f}   {statistics.median(ratios):5.2f}", end="")
        print(f"   (quartiles {ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f})")
    own, other = (
        traced_peak(partial(form, logits, target)) / logits.nbytes for form in (unixent.value_and_grad, scipy_form)
    )
    print(f"memory (x logits)  {own:8.2f}   {other:10.2f}   {own / other:5.2f}")


if __name__ == "__main__":
    main()
