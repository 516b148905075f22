"""Perplexity and calibration of a classifier and of a language model, from one pass over their logits.

    python examples/calibration.py [--model digits text] [--backend numpy] [--plot calibration.svg]

Trains the two models of the other examples (digits.py on any backend, charlm.py with torch), then asks
`unixent.position_stats` for five numbers of each held-out position: log-probability and correctness, entropy, largest
probability and log Σ p². Accuracy, perplexity, expected calibration error and Brier score are means of those, so no
softmax is formed, and for the language model no logits either. Every temperature is an option of the same call.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import corpus
import digits
import unixent

Array = np.ndarray[Any, Any]
OUTPUTS = ("log_prob", "entropy", "log_sum_sq", "max_prob", "correct")
BINS = 15


class Bin(NamedTuple):
    """The positions whose largest probability lies in one interval: their share, its mean, and their accuracy."""

    share: float
    confidence: float
    accuracy: float


class Score(NamedTuple):
    """Means over positions; logarithms are natural."""

    accuracy: float
    nats: float
    entropy: float
    ece: float
    brier: float


def bins_of(max_prob: Array, correct: Array, count: int = BINS) -> list[Bin]:
    """Intervals of equal width, those without positions left out."""
    index = np.minimum((max_prob * count).astype(int), count - 1)
    members = [index == i for i in range(count)]
    return [Bin(m.mean(), max_prob[m].mean(), correct[m].mean()) for m in members if m.any()]


def expected_calibration_error(bins: list[Bin]) -> float:
    """Σ share · |accuracy - confidence|."""
    return sum(each.share * abs(each.accuracy - each.confidence) for each in bins)


def brier_scores(log_prob: Array, log_sum_sq: Array) -> Array:
    """Σ_c (p_c - [c = y])² = 1 - 2 p_y + Σ p², of each position; each term less 1, so that small ones keep digits."""
    return np.asarray(np.expm1(log_sum_sq) - 2 * np.expm1(log_prob))


def score(stats: unixent.PositionStats) -> tuple[Score, list[Bin]]:
    """What the outputs `OUTPUTS` say together."""
    arrays = {name: np.asarray(getattr(stats, name)).astype(np.float64).ravel() for name in OUTPUTS}
    bins = bins_of(arrays["max_prob"], arrays["correct"])
    brier = brier_scores(arrays["log_prob"], arrays["log_sum_sq"]).mean()
    means = arrays["correct"].mean(), -arrays["log_prob"].mean(), arrays["entropy"].mean()
    return Score(*map(float, (*means, expected_calibration_error(bins), brier))), bins


Stats = Callable[[float], unixent.PositionStats]  # of the held-out positions, at a temperature


def digits_stats(backend: str, epochs: int, seed: int) -> Stats:
    """Softmax regression on handwritten digits, and its test images."""
    data = digits.load(seed)
    *_, (weights, bias) = digits.fit(backend, data, epochs, seed)
    array = unixent.get_backend(backend).asarray
    logits, target = array(data.test_pixels, None) @ weights + bias, array(data.test_digits, None)
    return lambda temperature: unixent.position_stats(logits, target, outputs=OUTPUTS, temperature=temperature)


def text_stats(steps: int, seed: int, count: int = 256) -> Stats:
    """The character model, and windows of the last tenth of the text, on which it is not trained."""
    import torch

    import charlm

    chunks, vocabulary = charlm.encode(corpus.text(), 0)
    cut = len(chunks) * 9 // 10
    torch.manual_seed(seed)
    model = charlm.Model(vocabulary)
    for _ in charlm.fit(model, charlm.fused, chunks[:cut], steps):
        pass
    window = charlm.windows(chunks[cut:], count, charlm.CONTEXT + 1)

    def stats(temperature: float) -> unixent.PositionStats:
        with torch.no_grad():
            hidden, last = model(window[:, :-1]), model.scores
            return unixent.linear_position_stats(
                hidden, last.weight, window[:, 1:], bias=last.bias, outputs=OUTPUTS, temperature=temperature
            )

    return stats


def draw(bins: dict[str, dict[float, list[Bin]]], path: Path) -> None:
    """Accuracy against confidence for each model and temperature; the area of a dot is its bin's share of positions."""
    from plotting import panels, shades

    with panels(path, len(bins)) as row:
        for axes, (name, curves) in zip(row, bins.items(), strict=True):
            axes.plot([0, 1], [0, 1], "k:", lw=1)
            for (temperature, curve), shade in zip(curves.items(), shades(len(curves)), strict=True):
                at, share = ([b.confidence for b in curve], [b.accuracy for b in curve]), [b.share for b in curve]
                axes.plot(*at, lw=1.5, color=shade, label=f"temperature {temperature:g}")
                axes.scatter(*at, s=[300 * each for each in share], color=shade)
            axes.set(xlabel="largest probability (mean of bin)", ylabel="accuracy", title=name, ylim=(0, 1.05))
        row[0].figure.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Perplexity and calibration of two models, without a softmax.")
    parser.add_argument("--model", nargs="+", choices=("digits", "text"), default=["digits", "text"])
    parser.add_argument("--backend", default="numpy", help="of the digits; the text's is torch (default: numpy)")
    parser.add_argument("--temperature", nargs="+", type=float, default=[0.5, 0.7, 1.0, 1.5])
    parser.add_argument("--epochs", type=int, default=30, help="of training on digits")
    parser.add_argument("--steps", type=int, default=300, help="of training on text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="reliability diagram to write")
    chosen = parser.parse_args(arguments)
    print("model   temperature  accuracy    nats  perplexity  entropy     ECE   Brier")
    bins: dict[str, dict[float, list[Bin]]] = {}
    for name in dict.fromkeys(chosen.model):
        try:
            stats = (
                digits_stats(chosen.backend, chosen.epochs, chosen.seed)
                if name == "digits"
                else text_stats(chosen.steps, chosen.seed)
            )
        except unixent.UnixentError as error:
            parser.error(str(error))
        except ModuleNotFoundError as error:
            parser.error(f'needs {error.name}: pip install ".[examples,torch]" in the checkout')
        bins[name] = {}
        for temperature in chosen.temperature:
            means, bins[name][temperature] = score(stats(temperature))
            print(
                f"{name:6}  {temperature:11g}  {means.accuracy:8.1%}  {means.nats:6.4f}  {math.exp(means.nats):10.4f}"
                f"  {means.entropy:7.4f}  {means.ece:6.4f}  {means.brier:6.4f}"
            )
    if chosen.plot:
        draw(bins, chosen.plot)
        print(f"plotted in {chosen.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
