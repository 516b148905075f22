"""The configured loss: MindFormers' parameters, masks, per-token terms, and the check for non-finite values."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import typing
from types import SimpleNamespace

import numpy as np
import pytest

import unixent
from unixent.keywords import LossKeywords

LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
LABEL = np.array([0, 3, 2, 1, 1], np.int32)
LOSSES = unixent.cross_entropy(LOGITS, LABEL, reduction="none").astype(np.float64)


def test_the_mean_is_over_the_active_positions():
    mask = np.array([1, 0, 1, 0.5, 0], np.float32)
    loss = unixent.CrossEntropyLoss()(LOGITS, LABEL, mask)
    assert loss.dtype == np.float32
    assert float(loss) == pytest.approx((mask * LOSSES).sum() / mask.sum(), rel=1e-6)
    assert float(unixent.CrossEntropyLoss()(LOGITS, LABEL, np.zeros(5))) == 0


def test_positional_parameters_are_those_of_mindformers():
    config = SimpleNamespace(data_parallel=1, model_parallel=1)
    loss = unixent.CrossEntropyLoss(config, True, True)
    assert loss.check_for_nan_in_loss_and_grad
    assert isinstance(loss(LOGITS, LABEL), unixent.LossTerms)
    with pytest.raises(TypeError, match="unexpected keyword argument 'reductoin'"):
        unixent.CrossEntropyLoss(reductoin="sum")  # type: ignore[call-arg]


def test_options_reach_the_loss():
    weight = np.array([0.5, 1, 2, 1])
    options = {"reduction": "sum", "label_smoothing": 0.1, "ignore_index": 3, "z_loss": 0.01, "dtype": "float64"}
    configured = unixent.CrossEntropyLoss(weight=weight, **options)
    assert configured(LOGITS, LABEL) == unixent.cross_entropy(LOGITS, LABEL, weight=weight, **options)
    probabilities = np.full((5, 4), 0.25)
    assert unixent.CrossEntropyLoss()(LOGITS, probabilities) == unixent.cross_entropy(LOGITS, probabilities)
    normalized = unixent.CrossEntropyLoss()(LOGITS, LABEL, normalizer=10)
    assert float(normalized) == pytest.approx(LOSSES.sum() / 10, rel=1e-6)


def test_per_token_terms():
    terms = unixent.CrossEntropyLoss(calculate_per_token_loss=True)(LOGITS, LABEL, np.array([1, 1, 0, 0, 0]))
    assert float(terms.numerator) == pytest.approx(LOSSES[:2].sum(), rel=1e-6)
    assert float(terms.denominator) == 2


def test_half_terms_do_not_overflow():
    count = 70_000
    logits, label = np.zeros((count, 2), np.float16), np.zeros(count, np.int8)
    terms = unixent.loss_terms(logits, label)
    assert terms.denominator == count
    assert terms.numerator.dtype == np.float32
    assert unixent.loss_terms(logits, label, dtype="float16").denominator.dtype == np.float16


def test_a_split_loss_without_its_group_is_refused_when_called():
    loss = unixent.CrossEntropyLoss(unixent.ParallelConfig(model_parallel=2))
    with pytest.raises(unixent.BackendError, match="model_parallel=2"):
        loss(LOGITS, LABEL)


def test_the_local_loss_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="unixent"):
        loss = unixent.CrossEntropyLoss(check_for_nan_in_loss_and_grad=True)(LOGITS, LABEL)
    assert "local loss: " + str(loss) in caplog.text


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_the_first_non_finite_position_is_named(bad, per_token):
    logits = LOGITS.reshape(5, 4).copy()
    logits[[2, 4], 1] = bad
    loss = unixent.CrossEntropyLoss(None, True, per_token)
    with pytest.raises(unixent.NonFiniteError, match=r"loss: .* at position \(2,\)"):
        loss(logits, LABEL)
    loss(logits, LABEL, np.array([1, 1, 0, 1, 0]))


def test_a_bad_gradient_of_a_finite_loss_is_named():
    # 2 z lse overflows float16 in the gradient, while the float32 loss of the position is finite.
    logits = np.full((2, 2), 60000, np.float16)
    logits[0] = 0
    loss = unixent.CrossEntropyLoss(None, True, z_loss=10.0, reduction="sum", dtype="float32")
    with pytest.raises(unixent.NonFiniteError, match=r"gradient: .* at position \(1,\)"):
        loss(logits, np.array([0, 0]))


def test_an_infinite_sum_of_finite_losses_has_its_own_message():
    logits = np.tile(np.array([0, 3], np.float16), (70_000, 1))
    loss = unixent.CrossEntropyLoss(None, True, reduction="sum")
    with pytest.raises(unixent.NonFiniteError, match="though every position's own loss is finite"):
        loss(logits, np.zeros(70_000, int))


def test_repr_shows_what_differs_from_the_defaults():
    shown = repr(unixent.CrossEntropyLoss(weight=np.ones(4), reduction="sum", backend="numpy"))
    assert shown == "CrossEntropyLoss(backend='numpy', reduction='sum', weight=...)"


@pytest.mark.parametrize(("option", "value"), [("reduction", "none"), ("reduction", "sum"), ("on_empty", "raise")])
def test_options_without_effect_on_the_terms_are_refused(option, value):
    with pytest.raises(unixent.OptionError, match=f"{option}: expected .* with calculate_per_token_loss"):
        unixent.CrossEntropyLoss(calculate_per_token_loss=True, **{option: value})


def test_a_normalizer_of_terms_is_refused():
    loss = unixent.CrossEntropyLoss(calculate_per_token_loss=True)
    with pytest.raises(unixent.OptionError, match="normalizer: expected None with calculate_per_token_loss"):
        loss(LOGITS, LABEL, normalizer=5.0)
    assert loss(LOGITS, LABEL).denominator == len(LABEL)


def test_unknown_options_of_any_call_are_type_errors():
    for call in (unixent.cross_entropy, unixent.loss_terms, unixent.value_and_grad):
        with pytest.raises(TypeError, match="smoothing"):
            call(LOGITS, LABEL, smoothing=0.1)
    with pytest.raises(TypeError, match="reduction"):
        unixent.loss_terms(LOGITS, LABEL, reduction="mean")
    with pytest.raises(TypeError, match="axis"):
        unixent.linear_cross_entropy(LOGITS, LOGITS, LABEL, axis=0)
    with pytest.raises(TypeError, match="smoothing"):
        unixent.CrossEntropyLoss(smoothing=0.1)
    with pytest.raises(TypeError, match="positional"):
        unixent.LossOptions("mean")


def test_signatures_show_every_option_with_its_default():
    options = {field.name: field.default for field in dataclasses.fields(unixent.LossOptions)}
    shown = inspect.signature(unixent.cross_entropy).parameters
    assert {name: shown[name].default for name in options} == options
    assert "options" not in shown
    assert set(options) - set(inspect.signature(unixent.loss_terms).parameters) == {"reduction", "on_empty"}
    assert set(options) - set(inspect.signature(unixent.linear_cross_entropy).parameters) == {"axis"}
    assert set(options) == set(typing.get_type_hints(LossKeywords))


def test_dtypes_are_named_as_a_framework_prints_them_and_not_otherwise():
    assert unixent.LossOptions(dtype="torch.float32").dtype == "float32"
    with pytest.raises(unixent.OptionError, match=r"dtype: expected .* got 'foo\.bar\.float32'"):
        unixent.LossOptions(dtype="foo.bar.float32")
