"""Statistics of positions in NumPy: both forms agree, in any layout, and their memory stays small."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

import unixent
from unixent import PositionStats

OUTPUTS = PositionStats._fields
GRADED = OUTPUTS[:5]


def arrays(rng: np.random.Generator, count: int, width: int, classes: int) -> tuple[np.ndarray, ...]:
    hidden, classifier = rng.normal(size=(count, width)), rng.normal(size=(classes, width))
    return hidden, classifier, rng.normal(size=classes), rng.integers(0, classes, count)


def upstream(rng: np.random.Generator, count: int, selected: int) -> PositionStats:
    each = {name: rng.normal(size=(count, selected) if "selected" in name else count) for name in GRADED}
    return PositionStats(**each)


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 3.0, "temperature": 0.7, "scale": 1.3}, {"label_smoothing": 0.1, "z_loss": 0.1}]
)
def test_the_linear_form_has_the_statistics_and_gradients_of_its_logits(chunk: int | None, options: Any) -> None:
    rng = np.random.default_rng(0)
    hidden, classifier, bias, target = arrays(rng, 20, 5, 11)
    target[3] = -100
    mask, selected = rng.random(20).round(1), rng.integers(0, 11, (20, 3))
    common: Any = {"outputs": OUTPUTS, "selected": selected, "k": 2, "mask": mask, **options}
    up = upstream(rng, 20, 3)
    logits = hidden @ classifier.T + bias
    linear, (for_hidden, for_classifier, for_bias) = unixent.linear_position_stats_and_grad(
        hidden, classifier, target, bias=bias, chunk=chunk, grad_output=up, **common
    )
    plain, gradient = unixent.position_stats_and_grad(logits, target, grad_output=up, **common)
    for name in OUTPUTS:
        np.testing.assert_allclose(getattr(linear, name), getattr(plain, name), rtol=1e-10, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(for_hidden, gradient @ classifier, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(for_classifier, gradient.T @ hidden, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(for_bias, gradient.sum(axis=0), rtol=1e-9, atol=1e-11)


def test_padding_of_the_vocabulary_has_a_gradient_of_zero() -> None:
    rng = np.random.default_rng(1)
    hidden, classifier, _, target = arrays(rng, 6, 3, 8)
    classifier[5:] = np.nan
    kept: Any = {"outputs": GRADED[1:4], "num_classes": 5}
    _, (for_hidden, for_classifier) = unixent.linear_position_stats_and_grad(hidden, classifier, target % 5, **kept)
    _, expected = unixent.linear_position_stats_and_grad(hidden, classifier[:5], target % 5, outputs=GRADED[1:4])
    np.testing.assert_array_equal(for_hidden, expected[0])
    np.testing.assert_array_equal(for_classifier, np.concatenate([expected[1], np.zeros((3, 3))]))


def test_a_position_that_does_not_count_adds_nothing_whatever_it_holds() -> None:
    rng = np.random.default_rng(2)
    hidden, classifier, bias, target = arrays(rng, 4, 3, 5)
    hidden[1], target[1] = np.nan, -100
    stats, grads = unixent.linear_position_stats_and_grad(hidden, classifier, target, bias=bias, outputs=GRADED[1:4])
    assert stats.entropy is not None
    assert stats.entropy[1] == 0
    assert all(np.isfinite(grad).all() for grad in grads)
    np.testing.assert_array_equal(grads[0][1], 0)


@pytest.mark.parametrize("order", ["C", "F", "strided", "reversed"])
def test_any_layout_has_the_bits_of_a_copy_and_nothing_is_written_to(order: str) -> None:
    x = np.random.default_rng(3).normal(size=(6, 4, 9)).astype(np.float32)
    given = {
        "C": x,
        "F": np.asfortranarray(x),
        "strided": np.repeat(x, 2, axis=1)[:, ::2],
        "reversed": x[::-1, :, ::-1],
    }[order]
    before, common = given.copy(), {"outputs": ("entropy", "logsumexp", "top_log_prob"), "k": 4, "axis": 1}
    got = unixent.position_stats(given, **common)
    due = unixent.position_stats(given.copy(), **common)
    for name in common["outputs"]:
        np.testing.assert_array_equal(getattr(got, name), getattr(due, name))
    np.testing.assert_array_equal(given, before)


def test_a_position_has_the_same_bits_among_any_others() -> None:
    x = np.random.default_rng(4).normal(size=(3000, 50)).astype(np.float32)
    for name in ("entropy", "log_sum_sq", "logsumexp"):
        whole = getattr(unixent.position_stats(x, outputs=name), name)
        alone = [getattr(unixent.position_stats(x[i], outputs=name), name) for i in (0, 1234, 2999)]
        np.testing.assert_array_equal(whole[[0, 1234, 2999]], alone)


@pytest.mark.parametrize("k", [1, 3, 50])
def test_the_top_is_a_stable_sort(k: int) -> None:
    x = np.random.default_rng(5).integers(0, 6, (200, 50)).astype(np.float32)
    x[0] = -np.inf
    x[0, 7] = 1
    stats = unixent.position_stats(x, outputs=("top_index", "top_log_prob"), k=k)
    np.testing.assert_array_equal(stats.top_index, np.argsort(-x, axis=1, kind="stable")[:, :k])


def test_the_linear_form_holds_no_logits_of_all_positions() -> None:
    rng = np.random.default_rng(6)
    hidden, classifier, _, target = arrays(rng, 4000, 16, 2000)
    hidden, classifier = hidden.astype(np.float32), classifier.astype(np.float32)
    outputs = ("log_prob", "entropy", "correct", "top_index")
    tracemalloc.start()
    unixent.linear_position_stats_and_grad(hidden, classifier, target, outputs=outputs, k=5, chunk=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.4 * 4 * 4000 * 2000


def test_the_statistics_of_no_position_are_empty() -> None:
    for shape in ((0, 3), (0, 4, 3)):
        x = np.zeros(shape, np.float32)
        stats, gradient = unixent.position_stats_and_grad(x, outputs=("entropy", "prediction", "top_index"), k=2)
        assert (stats.entropy.shape, stats.top_index.shape) == (shape[:-1], (*shape[:-1], 2))
        assert gradient.shape == shape
