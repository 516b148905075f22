"""A mean over nothing is 0 under on_empty="zero", unless a loss in it is NaN: NaN is never made a plausible number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unixent

LOGITS = np.random.default_rng(0).normal(size=(4, 5))
WITH_NAN = np.where(np.arange(4)[:, None] == 1, np.nan, LOGITS)
TARGET = np.array([0, 1, 2, 3])
OUT_OF_RANGE = np.array([0, 9, 2, 3])


def value_and_grads(form: str, logits: Any, target: Any, **options: Any) -> tuple[Any, Any]:
    if form == "logits":
        return unixent.value_and_grad(logits, target, validate="off", **options)
    return unixent.linear_value_and_grad(logits, np.eye(5), target, validate="off", wrt="hidden", chunk=3, **options)


@pytest.mark.parametrize("form", ["logits", "linear"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("on_empty", ["zero", "nan"])
@pytest.mark.parametrize(
    ("logits", "target", "options"),
    [
        (LOGITS, OUT_OF_RANGE, {"mask": np.zeros(4)}),
        (WITH_NAN, TARGET, {"normalizer": 0.0}),
        (WITH_NAN, TARGET, {"normalizer": np.array(0.0)}),
        (WITH_NAN, TARGET, {"weight": np.zeros(5)}),
        (WITH_NAN, np.full((4, 5), 0.2), {"normalizer": 0.0}),
    ],
    ids=["masked, out of range", "normalizer 0", "normalizer array", "weights 0", "probabilities"],
)
def test_a_nan_loss_makes_an_empty_mean_nan(form, smoothing, on_empty, logits, target, options):
    loss, grad = value_and_grads(form, logits, target, on_empty=on_empty, label_smoothing=smoothing, **options)
    assert np.isnan(loss)
    assert np.isnan(grad[1]).all()
    if on_empty == "zero":
        assert not grad[[0, 2, 3]].any()


@pytest.mark.parametrize("form", ["logits", "linear"])
@pytest.mark.parametrize("options", [{"mask": np.zeros(4)}, {"normalizer": 0.0}, {"weight": np.zeros(5)}], ids=str)
def test_a_mean_over_nothing_is_what_on_empty_says(form, options):
    loss, grad = value_and_grads(form, LOGITS, TARGET, **options)
    assert loss == 0
    assert not grad.any()
    assert np.isnan(value_and_grads(form, LOGITS, TARGET, on_empty="nan", **options)[0])
    with pytest.raises(unixent.EmptyMeanError):
        unixent.cross_entropy(LOGITS, TARGET, on_empty="raise", **options)


@pytest.mark.parametrize("options", [{"normalizer": 0.0}, {"weight": np.zeros(5)}], ids=str)
def test_an_empty_mean_raises_where_a_loss_is_nan_too(options):
    with pytest.raises(unixent.EmptyMeanError):
        unixent.cross_entropy(WITH_NAN, TARGET, on_empty="raise", **options)


def test_a_masked_row_of_nan_is_no_loss_at_all():
    loss, grad = unixent.value_and_grad(WITH_NAN, TARGET, mask=np.zeros(4))
    assert loss == 0
    assert not grad.any()
