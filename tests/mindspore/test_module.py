"""The cell: what mindformers.core.CrossEntropyLoss gives, in the places that a training script has for a loss."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

import unixent
from unixent_mindspore import CrossEntropyLoss

LOGITS = np.random.default_rng(9).normal(size=(6, 5)).astype(np.float32)
LABEL = np.array([4, 0, 2, 1, 3, 2], np.int32)
MASK = np.array([1, 0, 1, 0.5, 1, 0], np.float32)
FEATURES = np.random.default_rng(10).normal(size=(6, 3)).astype(np.float32)
INPUTS = ms.Tensor(LOGITS), ms.Tensor(LABEL), ms.Tensor(MASK)


def documented(logits, label, mask):
    """sum(m * nll) / sum(m), in float64."""
    logits = logits.astype(np.float64)
    nll = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(label)), label]
    return (mask * nll).sum() / mask.sum()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_loss_is_the_masked_mean_in_float32(dtype):
    logits = ms.Tensor(LOGITS).astype(getattr(ms, dtype))
    computed = CrossEntropyLoss()(logits, *INPUTS[1:])
    assert computed.dtype == ms.float32
    assert computed.shape == ()
    expected = documented(logits.astype(ms.float32).asnumpy(), LABEL, MASK)
    np.testing.assert_allclose(computed.asnumpy(), expected, rtol=1e-6)
    gradient = ms.grad(CrossEntropyLoss())(logits, *INPUTS[1:])
    assert gradient.dtype == logits.dtype


def test_per_token_terms_are_those_of_the_mean_and_an_empty_mask_gives_zero():
    numerator, denominator = CrossEntropyLoss(calculate_per_token_loss=True)(*INPUTS)
    np.testing.assert_allclose(float(numerator) / float(denominator), documented(LOGITS, LABEL, MASK), rtol=1e-6)
    empty = ms.Tensor(np.zeros(6, np.float32))
    value, gradient = ms.value_and_grad(CrossEntropyLoss())(*INPUTS[:2], empty)
    assert float(value) == 0
    assert not gradient.asnumpy().any()


@pytest.mark.parametrize(
    "options",
    [
        {"weight": np.linspace(1, 2, 5)},
        {"ignore_index": 2},
        {"reduction": "none"},
        {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0},
    ],
    ids=str,
)
def test_options_that_the_original_only_documents_have_their_effect(options):
    cell = CrossEntropyLoss(**options)

    @ms.jit
    def compiled(logits, label, mask):
        return cell(logits, label, mask)

    expected = unixent.cross_entropy(LOGITS, LABEL, mask=MASK, **options)
    np.testing.assert_allclose(cell(*INPUTS).asnumpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(compiled(*INPUTS).asnumpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("normalizer", [7, 7.0, ms.Tensor(7.0, ms.float32)], ids=["int", "float", "tensor"])
def test_a_normalizer_replaces_the_denominator(normalizer):
    cell = CrossEntropyLoss(label_smoothing=0.1)
    expected = unixent.cross_entropy(LOGITS, LABEL, mask=MASK, label_smoothing=0.1, normalizer=7.0)

    @ms.jit
    def compiled(logits, label, mask):
        return cell(logits, label, mask, normalizer=normalizer)

    np.testing.assert_allclose(cell(*INPUTS, normalizer).asnumpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(compiled(*INPUTS).asnumpy(), expected, rtol=1e-6)


def test_a_normalizer_replaces_the_denominator_in_graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)
    computed = CrossEntropyLoss()(*INPUTS, normalizer=ms.Tensor(7.0, ms.float32))
    expected = unixent.cross_entropy(LOGITS, LABEL, mask=MASK, normalizer=7.0)
    np.testing.assert_allclose(computed.asnumpy(), expected, rtol=1e-6)


def test_what_has_no_effect_beside_per_token_terms_is_refused():
    cell = CrossEntropyLoss(calculate_per_token_loss=True)

    @ms.jit
    def compiled(logits, label):
        return cell(logits, label, normalizer=5.0)

    for loss in (lambda *inputs: cell(*inputs, normalizer=5.0), compiled):
        with pytest.raises(unixent.OptionError, match="normalizer: expected None"):
            loss(*INPUTS[:2])
    for options in ({"reduction": "none"}, {"on_empty": "raise"}):
        with pytest.raises(unixent.OptionError, match=f"{next(iter(options))}: expected .* with calculate_per_token_l"):
            CrossEntropyLoss(calculate_per_token_loss=True, **options)


def test_a_nan_raises_with_its_position():
    logits = LOGITS.copy()
    logits[2, 1] = np.nan
    with pytest.raises(unixent.NonFiniteError, match=r"position \(2,\)"):
        CrossEntropyLoss(check_for_nan_in_loss_and_grad=True)(ms.Tensor(logits), *INPUTS[1:])


def test_bad_options_are_refused_on_construction():
    with pytest.raises(unixent.OptionError, match="reduction"):
        CrossEntropyLoss(reduction="avg")
    with pytest.raises(TypeError, match="smooth_factor"):
        CrossEntropyLoss(smooth_factor=0.1)


class Classifier(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense, self.loss = nn.Dense(3, 5), CrossEntropyLoss()

    def construct(self, features, label):
        return self.loss(self.dense(features), label)


@pytest.mark.parametrize("form", ["eager", "jit"])
def test_training_steps_by_value_and_grad_lower_the_loss(form):
    network = Classifier()
    optimizer = nn.SGD(network.trainable_params(), 0.5)
    forward = ms.value_and_grad(network, None, optimizer.parameters)

    def step(features, label):
        loss, gradients = forward(features, label)
        optimizer(gradients)
        return loss

    step = ms.jit(step) if form == "jit" else step
    features = ms.Tensor(FEATURES)
    losses = [float(step(features, INPUTS[1])) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("mode", [ms.PYNATIVE_MODE, ms.GRAPH_MODE])
def test_training_steps_by_with_loss_cell_lower_the_loss(mode):
    ms.set_context(mode=mode)
    network = nn.Dense(3, 5)
    train = nn.TrainOneStepCell(nn.WithLossCell(network, CrossEntropyLoss()), nn.SGD(network.trainable_params(), 0.5))
    features = ms.Tensor(FEATURES)
    losses = [float(train(features, INPUTS[1])) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "weight",
    [
        np.zeros(5, [("x", "f4"), ("y", "i4")]),
        np.array([b""] * 5),
        np.array([None] * 5),
        np.zeros(5, "datetime64[s]"),
        np.ma.masked_array(np.ones(5), [0, 0, 1, 0, 0]),
    ],
    ids=["records", "bytes", "objects", "dates", "masked"],
)
def test_class_weights_that_are_no_numbers_are_refused_by_name(weight):
    with pytest.raises(unixent.UnixentError, match=r"^weight: "):
        CrossEntropyLoss(weight=weight)
