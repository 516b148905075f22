"""The fused linear form on NumPy: what it holds in memory, and tiles of the classifier. The suite asks the rest."""

from __future__ import annotations

import numpy as np
import pytest

import unixent
from unixent_numpy import linear


def operands(positions, width, num_classes, dtype):
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(positions, width)).astype(dtype)
    classifier = rng.normal(size=(num_classes, width)).astype(dtype)
    return hidden, classifier, rng.integers(num_classes, size=positions)


def test_the_logits_never_exist_as_a_whole(peak_memory):
    positions, chunk = 2048, 128
    hidden, classifier, target = operands(positions, 32, 8000, np.float32)
    logits_bytes = positions * len(classifier) * hidden.itemsize
    peak = peak_memory(lambda: unixent.linear_value_and_grad(hidden, classifier, target, chunk=chunk))
    expected = logits_bytes * chunk / positions + 4 * hidden.nbytes + 4 * classifier.nbytes
    assert peak <= expected + (6 << 20)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_classifier_of_several_tiles_gives_the_value_and_gradients_of_one(monkeypatch, dtype):
    hidden, classifier, target = operands(23, 6, 11, dtype)
    bias = np.random.default_rng(4).normal(size=11).astype(dtype)
    wrt = ("hidden", "classifier", "bias")
    expected_loss, expected_grads = unixent.linear_value_and_grad(hidden, classifier, target, bias=bias, wrt=wrt)
    monkeypatch.setattr(linear, "TILE", 4)
    loss, grads = unixent.linear_value_and_grad(hidden, classifier, target, bias=bias, wrt=wrt)
    unit = np.finfo(dtype).eps
    np.testing.assert_allclose(loss, expected_loss, rtol=unit)
    for grad, expected in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=unit, atol=4 * unit * np.abs(expected).max())


@pytest.mark.parametrize(
    ("wrt", "text"), [("bias", "wrt: expected one or several of"), ("target", "class indices have no gradient")]
)
def test_what_has_no_gradient_cannot_be_asked_for(wrt, text):
    hidden, classifier, target = operands(4, 3, 5, np.float32)
    with pytest.raises(unixent.OptionError, match=text):
        unixent.linear_value_and_grad(hidden, classifier, target, wrt=wrt)
