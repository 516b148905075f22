"""`num_classes`: what lies beyond the classes that exist is padding, whatever it holds."""

from __future__ import annotations

import numpy as np
import pytest

import unixent
from unixent.protocol import Sharding

C, HELD = 5, 8
RNG = np.random.default_rng(0)
INDEX = RNG.integers(C, size=(4, 3))
OPTIONS = [{}, {"label_smoothing": 0.2}, {"z_loss": 0.1, "softcap": 3.0}, {"label_smoothing": 0.2, "weighted": True}]


def weighted(options):
    """The options, with class weights where they ask for some."""
    rest = {name: value for name, value in options.items() if name != "weighted"}
    return rest | {"weight": np.arange(1.0, C + 1)} if options.get("weighted") else rest


def padded(shape, axis, fill):
    """Values of C classes along the axis, and the same with padding behind them."""
    values = RNG.normal(size=shape)
    padding = [(0, HELD - C if each == axis else 0) for each in range(len(shape))]
    return values, np.pad(values, padding, constant_values=fill)


def assert_padded(grad, expected, axis):
    """The gradient of the classes that exist, and zeros for the padding."""
    existing, padding = np.split(grad, [C], axis)
    np.testing.assert_array_equal(existing, expected)
    assert padding.shape[axis] == HELD - C
    assert not padding.any()


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 1e300], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_padding_changes_nothing_and_has_no_gradient(axis, options, fill):
    options, shape = weighted(options), (*INDEX.shape[:axis], C, *INDEX.shape[axis:])
    logits, logits_held = padded(shape, axis, fill)
    probabilities, probabilities_held = padded(shape, axis, fill)
    keywords = {"axis": axis, **options}
    for target, held, wrt in (
        (INDEX, INDEX, ("logits",)),
        (probabilities, probabilities_held, ("logits", "target")),
    ):
        loss, grads = unixent.value_and_grad(logits, target, wrt=wrt, **keywords)
        actual, grads_held = unixent.value_and_grad(logits_held, held, wrt=wrt, num_classes=C, **keywords)
        assert actual == loss == unixent.cross_entropy(logits_held, held, num_classes=C, **keywords)
        for grad, expected in zip(grads_held, grads, strict=True):
            assert_padded(grad, expected, axis)


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e300], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("indexed", [True, False])
def test_padding_of_a_classifier_changes_nothing_and_has_no_gradient(indexed, options, fill):
    options, hidden = weighted(options), RNG.normal(size=(4, 3, 6))
    (classifier, classifier_held), (bias, bias_held) = padded((C, 6), 0, fill), padded((C,), 0, fill)
    target = target_held = INDEX
    wrt = ("hidden", "classifier", "bias")
    if not indexed:
        (target, target_held), wrt = padded((4, 3, C), 2, fill), (*wrt, "target")
    loss, grads = unixent.linear_value_and_grad(hidden, classifier, target, bias=bias, wrt=wrt, **options)
    options |= {"bias": bias_held, "num_classes": C}
    actual, grads_held = unixent.linear_value_and_grad(hidden, classifier_held, target_held, wrt=wrt, **options)
    assert actual == loss == unixent.linear_cross_entropy(hidden, classifier_held, target_held, **options)
    np.testing.assert_array_equal(grads_held[0], grads[0])
    for grad, expected, axis in zip(grads_held[1:], grads[1:], (0, 0, 2)[: len(grads) - 1], strict=True):
        assert_padded(grad, expected, axis)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "5", np.array([5])], ids=repr)
def test_num_classes_is_an_int_of_at_least_1(value):
    with pytest.raises(unixent.OptionError, match=r"^num_classes: expected None or an int >= 1; got"):
        unixent.LossOptions(num_classes=value)


def test_no_more_classes_can_exist_than_the_arrays_hold():
    message = r"num_classes: expected None or an int in \[1, 4\]; got 5"
    with pytest.raises(unixent.OptionError, match=message):
        unixent.cross_entropy(np.zeros((2, 4)), np.zeros(2, int), num_classes=5)
    with pytest.raises(unixent.OptionError, match=message):
        unixent.linear_cross_entropy(np.zeros((2, 3)), np.zeros((4, 3)), np.zeros(2, int), num_classes=5)
    assert unixent.cross_entropy(np.zeros((2, 4)), np.zeros(2, int), num_classes=np.int32(4)) == np.log(4)


def test_a_class_index_in_the_padding_is_out_of_range():
    logits, target = np.zeros((2, HELD)), np.array([0, C])
    with pytest.raises(unixent.TargetRangeError, match=r"in \[0, 5\) .* got 5 at position \(1,\)"):
        unixent.cross_entropy(logits, target, num_classes=C)
    losses = unixent.cross_entropy(logits, target, num_classes=C, validate="off", reduction="none")
    np.testing.assert_array_equal(losses, [np.log(C), np.nan])
    ignored = unixent.cross_entropy(logits, target, num_classes=C, ignore_index=C, reduction="none")
    np.testing.assert_array_equal(ignored, [np.log(C), 0])


def test_weight_has_as_many_entries_as_classes_exist():
    with pytest.raises(unixent.ShapeError, match=r"weight: expected a floating array of shape \(5,\); got"):
        unixent.cross_entropy(np.zeros((2, HELD)), np.zeros(2, int), weight=np.ones(HELD), num_classes=C)


def test_the_configured_loss_takes_num_classes():
    logits, target = np.zeros((2, HELD), np.float32), np.zeros(2, int)
    loss = unixent.CrossEntropyLoss(num_classes=C)
    assert repr(loss) == "CrossEntropyLoss(num_classes=5)"
    assert (
        loss(logits, target)
        == unixent.loss_terms(logits, target, num_classes=C).numerator / 2
        == np.log(5.0, dtype="f4")
    )


@pytest.mark.parametrize("existing", [(4, 4, 4), (4, 4, 3), (4, 4, 0), (4, 1, 0), (1, 0, 0)], ids=str)
def test_a_process_may_hold_padding_alone(existing):
    sharding = Sharding("tp", None, (4, 4, 4))
    assert sharding.existing(sum(existing)).classes_per_rank == existing
