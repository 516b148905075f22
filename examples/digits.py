"""Softmax regression on scikit-learn's handwritten digits, through `unixent.value_and_grad`, on any backend.

    python examples/digits.py --backend numpy          # or torch, jax, mindspore, the name of a plug-in
    python examples/digits.py --backend numpy torch    # the same steps on each; "all": on every installed backend

Prints loss and accuracy and plots both; with several backends, all curves on one plot, with the largest difference
between any two. The code below names no framework: the backend converts arrays, and all four frameworks spell matrix
products and sums alike. unixent returns the gradient of the logits; the gradient of the linear layer is then a matrix
product, so the example needs no autodiff.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import unixent

Array = Any
RATE, MOMENTUM, BATCH = 0.5, 0.9, 256


class Data(NamedTuple):
    """Pixels in [0, 1], one row per image, and the digit that each image shows."""

    train_pixels: np.ndarray[Any, Any]
    train_digits: np.ndarray[Any, Any]
    test_pixels: np.ndarray[Any, Any]
    test_digits: np.ndarray[Any, Any]


class Epoch(NamedTuple):
    """Mean loss (nats) and accuracy on the test images."""

    loss: float
    accuracy: float


def load(seed: int) -> Data:
    """1,797 images of 8 x 8 pixels in random order; every fifth is a test image."""
    from sklearn.datasets import load_digits

    bundled = load_digits()
    order = np.random.default_rng(seed).permutation(len(bundled.target))
    pixels = (bundled.data[order] / 16).astype(np.float32)
    digits = bundled.target[order].astype(np.int32)
    test = np.arange(len(order)) % 5 == 0
    return Data(pixels[~test], digits[~test], pixels[test], digits[test])


def fit(backend: str, data: Data, epochs: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Weights and bias after each epoch of stochastic gradient descent with momentum: the same steps on any backend."""
    array = unixent.get_backend(backend).asarray
    rng = np.random.default_rng(seed)
    classes, width = int(data.train_digits.max()) + 1, data.train_pixels.shape[1]
    weights = array(np.zeros((width, classes), np.float32), None)
    bias = array(np.zeros(classes, np.float32), None)
    speeds = [weights * 0, bias * 0]
    for _ in range(epochs):
        for chosen in batches(rng, len(data.train_digits)):
            pixels, digits = array(data.train_pixels[chosen], None), array(data.train_digits[chosen], None)
            _, grad = unixent.value_and_grad(pixels @ weights + bias, digits, backend=backend)
            speeds = [MOMENTUM * speeds[0] + pixels.T @ grad, MOMENTUM * speeds[1] + grad.sum(0)]
            weights, bias = weights - RATE * speeds[0], bias - RATE * speeds[1]
        yield weights, bias


def train(backend: str, data: Data, epochs: int, seed: int, report: Callable[[int, Epoch], None]) -> list[Epoch]:
    """Train, and measure loss and accuracy after each epoch."""
    array = unixent.get_backend(backend).asarray
    test_pixels, test_digits = array(data.test_pixels, None), array(data.test_digits, None)
    curve = []
    for epoch, (weights, bias) in enumerate(fit(backend, data, epochs, seed), 1):
        logits = test_pixels @ weights + bias
        loss = float(unixent.cross_entropy(logits, test_digits, backend=backend))
        hits = np.asarray(logits).argmax(1) == data.test_digits
        curve.append(Epoch(loss, float(hits.mean())))
        report(epoch, curve[-1])
    return curve


def batches(rng: np.random.Generator, count: int) -> list[np.ndarray[Any, Any]]:
    """Every training image once, in random order, in batches of about `BATCH`."""
    return np.array_split(rng.permutation(count), -(-count // BATCH))


class Difference(NamedTuple):
    """The largest difference between the test losses of two backends, in nats."""

    loss: float
    epoch: int
    one: str
    other: str

    def __str__(self) -> str:
        return f"{self.loss:.1e} nats ({self.one} and {self.other}, epoch {self.epoch})"


def furthest(curves: dict[str, list[Epoch]]) -> Difference:
    """The largest difference between any two curves, at any epoch."""
    return max(
        Difference(abs(a.loss - b.loss), epoch, one, other)
        for one, other in combinations(curves, 2)
        for epoch, (a, b) in enumerate(zip(curves[one], curves[other], strict=True), 1)
    )


def draw(curves: dict[str, list[Epoch]], path: Path) -> None:
    """Loss and accuracy against epochs."""
    from plotting import draw_overlaid, panels

    with panels(path, 2) as (left, right):
        draw_overlaid(left, {backend: [point.loss for point in curve] for backend, curve in curves.items()})
        draw_overlaid(right, {backend: [100 * point.accuracy for point in curve] for backend, curve in curves.items()})
        left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="test loss", ylim=(0, None))
        right.set(xlabel="epoch", ylabel="%", title="test accuracy", ylim=(None, 100))
        title = "softmax regression on 8 x 8 digits, through unixent"
        if len(curves) > 1:
            title += f"\nlargest difference between two losses: {furthest(curves)}"
        left.figure.suptitle(title)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Softmax regression on handwritten digits, on any backend of unixent.")
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["numpy"],
        metavar="NAME",
        help='numpy, torch, jax, mindspore or a plug-in, one or several; "all": each one installed (default: numpy)',
    )
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("digits.png"), help="plot to write")
    chosen = parser.parse_args(arguments)
    names = list(dict.fromkeys(chosen.backend))
    if names == ["all"]:
        names = [status.name for status in unixent.backends() if status.installed]
    try:
        versions = {status.name: status.version for status in unixent.backends(*names)}
        for name in names:
            unixent.get_backend(name)
        data = load(chosen.seed)
    except unixent.UnixentError as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.error(f'needs {error.name}: pip install ".[examples]" in the checkout')

    def report(epoch: int, point: Epoch) -> None:
        if epoch == 1 or epoch % 5 == 0 or epoch == chosen.epochs:
            print(f"{epoch:5}  {point.loss:9.4f}  {point.accuracy:8.1%}")

    print(f"{len(data.train_digits)} training images, {len(data.test_digits)} test images")
    curves = {}
    for name in names:
        print(f"backend {name} {versions[name]}\n\nepoch  test loss  accuracy")
        start = time.perf_counter()
        curves[name] = train(name, data, chosen.epochs, chosen.seed, report)
        print(f"\n{time.perf_counter() - start:.1f} s")
    draw(curves, chosen.output)
    if len(curves) > 1:
        print(f"largest difference between two losses: {furthest(curves)}")
    print(f"plotted in {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
