"""The fused linear form on NumPy against its unfused form: time, and peak memory.

    python benchmarks/numpy_linear_cross_entropy.py [--positions 2048 --width 512 --classes 32000 --rounds 7 --busy 2]

Loss and gradients for hidden states and classifier. Both sides run in turn in one process, and what is reported is the
median of the rounds' ratios. Memory is what NumPy held at its peak beyond the inputs, results included.
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

import unixent
from measuring import add_busy_option, by_load, machine, traced_peak

Array = np.ndarray[Any, Any]
Form = Callable[[Array, Array, Array], tuple[Any, tuple[Array, Array]]]


def unfused(hidden: Array, classifier: Array, target: Array) -> tuple[Any, tuple[Array, Array]]:
    loss, gradient = unixent.value_and_grad(hidden @ classifier.T, target)
    return loss, (gradient @ classifier, gradient.T @ hidden)


def products(hidden: Array, classifier: Array, target: Array) -> tuple[Any, tuple[Array, Array]]:
    """The three matrix products and nothing else: no form can be faster."""
    logits = hidden @ classifier.T
    return 0.0, (logits @ classifier, logits.T @ hidden)


FORMS: dict[str, Form] = {
    "value_and_grad(hidden @ classifier.T)": unfused,
    "unixent.linear_value_and_grad": unixent.linear_value_and_grad,
    "three matrix products": products,
}


def seconds(form: Form, inputs: tuple[Array, Array, Array]) -> float:
    start = time.perf_counter()
    form(*inputs)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="The fused linear form on NumPy against its unfused form.")
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=7)
    add_busy_option(parser)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((chosen.positions, chosen.width), np.float32)
    classifier = rng.standard_normal((chosen.classes, chosen.width), np.float32) / np.float32(chosen.width**0.5)
    inputs = hidden, classifier, rng.integers(chosen.classes, size=chosen.positions)

    loss, gradients = unfused(*inputs)
    own_loss, own_gradients = unixent.linear_value_and_grad(*inputs)
    np.testing.assert_allclose(own_loss, loss, rtol=1e-5)
    for own, other in zip(own_gradients, gradients, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5 * float(abs(other).max()))
    del gradients, own_gradients, own, other

    def measure() -> list[dict[str, float]]:
        return [{name: seconds(form, inputs) for name, form in FORMS.items()} for _ in range(chosen.rounds)]

    measured = by_load(chosen.busy, measure)

    print(f"machine   {machine()}")
    print(f"versions  unixent {unixent.__version__}, NumPy {np.__version__}, Python {platform.python_version()}")
    print(f"problem   {chosen.positions} positions, width {chosen.width}, {chosen.classes} classes, float32\n")
    columns = " | ".join(f"seconds{load} | multiple of unfused{load}" for load in measured)
    print(f"| form | {columns} | peak memory / logits |\n|---|{'---|---|' * len(measured)}---|")
    first, logits = next(iter(FORMS)), chosen.positions * chosen.classes * hidden.itemsize
    for name, form in FORMS.items():
        cells = []
        for rounds in measured.values():
            cells.append(f"{statistics.median(times[name] for times in rounds):.2f}")
            cells.append(f"{statistics.median(times[name] / times[first] for times in rounds):.2f}")
        memory = traced_peak(partial(form, *inputs)) / logits
        print(f"| {name} | {' | '.join(cells)} | {memory:.2f} |")


if __name__ == "__main__":
    main()
