"""The example's training curves are the same on every backend.

From the same logits, the losses of two backends may differ by the sum of their two bounds, 2 (8 + 2 log2 C) u of the
loss (docs/semantics.md). The tests allow no more for whole trainings, in which every matrix product, gradient and
update of every step is rounded differently. The curves use about a fifth of that, because softmax regression is convex
and the steps are short: training moves two nearby sets of weights closer together, so rounding errors do not grow.
"""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import pytest

BACKENDS = ("numpy", "torch", "jax", "mindspore")
for name in BACKENDS[1:]:
    pytest.importorskip(name, reason="needs torch, jax and mindspore in one environment: tox -e trio")
pytest.importorskip("sklearn", reason='needs the extra "examples"')
pytest.importorskip("matplotlib", reason='needs the extra "examples"')

EPOCHS, SEED, CLASSES = 30, 0, 10
BOUND = 2 * (8 + 2 * math.log2(CLASSES)) * 2.0**-24
digits = SimpleNamespace(**run_path(str(Path(__file__).resolve().parents[2] / "examples" / "digits.py")))
Curve = list[Any]


@pytest.fixture(scope="module")
def curves() -> dict[str, Curve]:
    data = digits.load(SEED)
    return {name: digits.train(name, data, EPOCHS, SEED, lambda epoch, point: None) for name in BACKENDS}


def apart(one: Curve, other: Curve) -> float:
    """The largest relative difference of two losses of the same epoch."""
    return max(abs(a.loss - b.loss) / min(a.loss, b.loss) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("one", "other"), list(combinations(BACKENDS, 2)), ids="-".join)
def test_curves_are_the_same(curves: dict[str, Curve], one: str, other: str) -> None:
    assert len(curves[one]) == EPOCHS
    assert apart(curves[one], curves[other]) <= BOUND
    assert [point.accuracy for point in curves[one]] == [point.accuracy for point in curves[other]]


def test_a_different_training_exceeds_the_bound(curves: dict[str, Curve]) -> None:
    """Pixels moved by a 10,000th of their range: no eye sees it on the picture."""
    data = digits.load(SEED)
    moved = data._replace(train_pixels=data.train_pixels * data.train_pixels.dtype.type(1 - 1e-4))
    curve = digits.train("numpy", moved, EPOCHS, SEED, lambda epoch, point: None)
    assert apart(curve, curves["numpy"]) > 10 * BOUND


def test_one_picture_names_the_largest_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], curves: dict[str, Curve]
) -> None:
    picture = tmp_path / "digits.png"
    options = ["--backend", *BACKENDS, "--epochs", "2", "--output", str(picture)]
    assert digits.main(options) == 0
    output = capsys.readouterr().out
    assert [line.split()[1] for line in output.splitlines() if line.startswith("backend ")] == list(BACKENDS)
    short = {name: curve[:2] for name, curve in curves.items()}
    assert f"largest difference between two losses: {digits.furthest(short)}" in output
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
