"""The scores that the example makes of statistics are those of the dense softmax, and its page quotes them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import calibration
import unixent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "calibration.md"
ROW = re.compile(r"^(digits|text) +(.*)$", re.MULTILINE)
BACKENDS = [s.name for s in unixent.backends() if s.installed and s.name in ("numpy", "torch", "jax", "mindspore")]


def rows(text: str) -> dict[tuple[str, float], list[float]]:
    """The numbers of each model and temperature, as printed."""
    numbers = [(model, [float(cell.rstrip("%")) for cell in cells.split()]) for model, cells in ROW.findall(text)]
    return {(model, temperature): scores for model, (temperature, *scores) in numbers}


def dense(logits: np.ndarray, target: np.ndarray) -> calibration.Score:
    """The definitions, of the whole softmax in float64."""
    p = np.exp(logits - np.logaddexp.reduce(logits, 1, keepdims=True))
    p_y, best = p[np.arange(len(p)), target], p.max(1)
    hits = p.argmax(1) == target
    edges = np.minimum((best * 15).astype(int), 14)
    ece = sum(abs(hits[edges == i].sum() - best[edges == i].sum()) for i in range(15)) / len(p)
    brier = ((p - np.eye(p.shape[1])[target]) ** 2).sum(1).mean()
    return calibration.Score(hits.mean(), -np.log(p_y).mean(), -(p * np.log(p)).sum(1).mean(), ece, brier)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_scores_are_those_of_the_dense_softmax(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(400, 7)) * 3, rng.integers(7, size=400)
    stats = unixent.position_stats(logits, target, outputs=calibration.OUTPUTS, temperature=temperature)
    scores, bins = calibration.score(stats)
    assert scores == pytest.approx(dense(logits / temperature, target), rel=1e-12)
    assert sum(each.share for each in bins) == pytest.approx(1)


def test_the_brier_score_of_a_confident_position_keeps_digits() -> None:
    stats = unixent.position_stats(np.array([[16.0, 0.0]]), np.array([0]), outputs=calibration.OUTPUTS)
    wrong = 1 / (1 + np.exp(16.0))
    assert calibration.brier_scores(stats.log_prob, stats.log_sum_sq) == pytest.approx(2 * wrong**2, rel=1e-2)


def test_a_certain_and_right_model_is_calibrated_and_a_certain_and_wrong_one_is_not() -> None:
    sure = np.ones(4)
    assert calibration.expected_calibration_error(calibration.bins_of(sure, sure)) == 0
    assert calibration.expected_calibration_error(calibration.bins_of(sure, 0 * sure)) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_page_quotes_the_digits(backend: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if not unixent.get_backend(backend).capabilities.position_stats:
        pytest.skip(f"{backend} does not declare position_stats")
    pytest.importorskip("sklearn", reason='needs the extra "examples"')
    plot = tmp_path / "calibration.svg"
    assert calibration.main(["--model", "digits", "--backend", backend, "--plot", str(plot)]) == 0
    printed, quoted = rows(capsys.readouterr().out), rows(PAGE.read_text("utf-8"))
    assert list(printed) == [key for key in quoted if key[0] == "digits"]
    for key, scores in printed.items():
        # Printed to four digits; rounding differs between frameworks' matrix products.
        assert scores == pytest.approx(quoted[key], abs=1e-3), key
    assert "temperature 0.5" in plot.read_text("utf-8")


def test_the_language_model_scores_what_it_has_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason='needs the extra "torch"')
    assert calibration.main(["--model", "text", "--steps", "10", "--temperature", "1", "0.5"]) == 0
    printed = rows(capsys.readouterr().out)
    accuracy, nats, perplexity, entropy = printed["text", 1.0][:4]
    assert nats < 4  # log 100 is 4.6: the text has about a hundred different characters
    assert perplexity == pytest.approx(np.exp(nats), rel=1e-3)
    assert printed["text", 0.5][3] < entropy
    assert printed["text", 0.5][0] == accuracy
