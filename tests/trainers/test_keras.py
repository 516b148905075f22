"""Keras 3 on JAX, and on torch by running this file again: losses, weights, masks, fitting, saving."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="needs keras")

import unixent  # noqa: E402
from unixent.keras import CrossEntropy  # noqa: E402

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(4, 6, 5)).astype(np.float32) * 3
LABELS = RANDOM.integers(5, size=(4, 6))
WEIGHTS = np.array([1, 0.5, 0, 2], np.float32)
OF_POSITIONS = np.tile(WEIGHTS[:, None], 6)
MASK = np.arange(24).reshape(4, 6) % 3 > 0


def _loss(loss, y_true=LABELS, logits=LOGITS, weight=None, mask=None):
    y_pred = keras.ops.convert_to_tensor(logits)
    if mask is not None:
        keras.src.backend.set_keras_mask(y_pred, keras.ops.convert_to_tensor(mask))
    value = loss(keras.ops.convert_to_tensor(y_true), y_pred, sample_weight=weight)
    return keras.ops.convert_to_numpy(value)


@pytest.fixture
def original():
    return functools.partial(keras.losses.SparseCategoricalCrossentropy, from_logits=True)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", None])
@pytest.mark.parametrize("weight", [None, OF_POSITIONS])
@pytest.mark.parametrize("masked", [False, True])
def test_reductions_weights_and_masks_are_those_of_keras(original, reduction, weight, masked):
    options = {"weight": weight, "mask": MASK if masked else None}
    actual, expected = (_loss(make(reduction=reduction), **options) for make in (CrossEntropy, original))
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum", None])
@pytest.mark.parametrize("weight", [WEIGHTS, WEIGHTS[:, None]])
def test_weights_of_examples_are_those_of_all_their_positions(original, reduction, weight):
    expected = _loss(CrossEntropy(reduction=reduction), weight=OF_POSITIONS)
    np.testing.assert_allclose(_loss(CrossEntropy(reduction=reduction), weight=weight), expected, rtol=1e-6)
    if reduction == "mean_with_sample_weight" and weight.ndim == 2:  # Keras sums the weights before they are spread
        np.testing.assert_allclose(_loss(original(reduction=reduction), weight=weight), 6 * expected, rtol=1e-5)


def test_targets_of_any_dtype_and_with_an_axis_of_one_are_taken(original):
    expected = _loss(original())
    for target in (LABELS.astype(np.float32), LABELS[..., None], LABELS.astype(np.uint8)):
        np.testing.assert_allclose(_loss(CrossEntropy(), target), expected, rtol=1e-6)


def test_ignored_targets_are_those_of_keras(original):
    ignored = np.where(MASK, LABELS, -100)
    for weight in (None, OF_POSITIONS):
        np.testing.assert_allclose(
            _loss(CrossEntropy(), ignored, weight=weight),
            _loss(original(ignore_class=-100), ignored, weight=weight),
            rtol=1e-6,
        )


def test_probabilities_and_smoothing_are_those_of_keras():
    one_hot = np.eye(5, dtype=np.float32)[LABELS]
    expected = _loss(keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), one_hot)
    for target in (one_hot, LABELS):
        np.testing.assert_allclose(_loss(CrossEntropy(label_smoothing=0.1), target), expected, rtol=1e-6)


def test_positions_of_weight_zero_may_hold_nan(original):
    logits = LOGITS.copy()
    logits[2] = np.nan
    assert np.isnan(_loss(original(), logits=logits, weight=OF_POSITIONS))
    expected = _loss(CrossEntropy(), weight=WEIGHTS)
    np.testing.assert_allclose(_loss(CrossEntropy(), logits=logits, weight=WEIGHTS), expected, rtol=1e-6)


def test_a_mean_over_nothing_is_zero():
    assert _loss(CrossEntropy(), np.full((4, 6), -100)) == 0


def test_half_precision_gives_a_loss_in_float32():
    loss = _loss(CrossEntropy(), logits=LOGITS.astype(np.float16))
    assert loss.dtype == np.float32
    np.testing.assert_allclose(
        loss, _loss(CrossEntropy(), logits=LOGITS.astype(np.float16).astype(np.float32)), rtol=1e-6
    )


def _model(policy):
    """A tagger whose embedding masks token 0."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Embedding(9, 8, mask_zero=True, dtype=policy),
        keras.layers.LSTM(8, return_sequences=True, dtype=policy),
        keras.layers.Dense(5, dtype=policy),
    ]
    return keras.Sequential(layers)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_fitting_a_masked_model_has_the_curve_of_keras(original, policy):
    tokens = np.where(MASK.cumsum(1) < 4, RANDOM.integers(1, 9, size=(4, 6)), 0)

    def curve(loss):
        model = _model(policy)
        model.compile(keras.optimizers.Adam(0.05), loss, weighted_metrics=["sparse_categorical_accuracy"])
        return model.fit(
            tokens, LABELS, sample_weight=OF_POSITIONS, epochs=4, batch_size=2, verbose=0, shuffle=False
        ).history

    actual, expected = curve(CrossEntropy()), curve(original())
    assert actual["loss"][-1] < actual["loss"][0]
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-4 if policy == "float32" else 2e-2, err_msg=name)


def test_a_saved_model_loads_with_its_loss(tmp_path):
    model = _model("float32")
    model.compile("adam", CrossEntropy(label_smoothing=0.1, reduction="sum"))
    model.fit(LABELS + 1, LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    loss = keras.saving.load_model(tmp_path / "model.keras").loss
    assert isinstance(loss, CrossEntropy)
    assert loss.get_config() == {"name": "cross_entropy", "reduction": "sum", "label_smoothing": 0.1}


@pytest.mark.parametrize("weight", [np.array([1, 2, 0, 4, 5], np.float32), [1, 2, 0, 4, 5], "tensor"])
def test_a_saved_model_keeps_the_weights_of_classes(tmp_path, weight):
    weight = keras.ops.convert_to_tensor([1.0, 2, 0, 4, 5]) if isinstance(weight, str) else weight
    loss = CrossEntropy(weight=weight, z_loss=0.01)
    model = _model("float32")
    model.compile("adam", loss)
    model.fit(LABELS + 1, LABELS, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() == loss.get_config()
    evaluated = [each.evaluate(LABELS + 1, LABELS, verbose=0) for each in (model, loaded)]
    assert evaluated[0] == evaluated[1] > 0
    loaded.fit(LABELS + 1, LABELS, verbose=0)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", None])
def test_a_loss_comes_back_from_its_configuration(reduction):
    loss = CrossEntropy(reduction, "mine", ignore_index=0, softcap=5.0)
    for again in (CrossEntropy.from_config(loss.get_config()), keras.losses.deserialize(keras.losses.serialize(loss))):
        assert isinstance(again, CrossEntropy)
        assert again.get_config() == loss.get_config()
        np.testing.assert_array_equal(_loss(again), _loss(loss))


@pytest.mark.parametrize("option", ["from_logits", "ignore_class", "label_smooting", "axis", "dtype"])
def test_an_unknown_option_raises_where_it_is_written(option):
    with pytest.raises(TypeError, match=f"^{option}: expected options of ignore_index, label_smoothing"):
        CrossEntropy(**{option: 1})


def test_a_wrong_value_raises_where_it_is_written():
    with pytest.raises(unixent.OptionError, match="label_smoothing: expected"):
        CrossEntropy(label_smoothing=2)


def test_class_weights_of_fit_are_those_of_keras(original):
    features, labels = LOGITS[:, 0], LABELS[:, 0]

    def curve(loss, target):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(5)])
        model.compile("adam", loss)
        weights = {0: 1.0, 1: 2.0, 2: 0.5, 3: 0.0, 4: 1.0}
        return model.fit(features, target, class_weight=weights, epochs=3, verbose=0).history["loss"]

    for target, theirs in (
        (labels, original()),
        (labels[:, None], original()),
        (np.eye(5)[labels], keras.losses.CategoricalCrossentropy(from_logits=True)),
    ):
        np.testing.assert_allclose(curve(CrossEntropy(), target), curve(theirs, target), rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="runs on torch")
def test_all_of_this_file_on_torch():
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
