"""`unixent_torch.CrossEntropyLoss` where `torch.nn.CrossEntropyLoss` stood."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch

import unixent
from unixent_torch import CrossEntropyLoss, LinearCrossEntropyLoss

SHAPES = {"vector": (5,), "matrix": (3, 5), "image": (2, 5, 4, 3)}


@pytest.mark.parametrize("target_kind", ["index", "probability"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1}, {"weight": torch.arange(1.0, 6.0)}],
    ids=lambda arguments: ",".join(arguments) or "defaults",
)
def test_agrees_with_the_stock_module(arguments: dict[str, Any], shape: tuple[int, ...], target_kind: str) -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=source, requires_grad=True)
    if target_kind == "index":
        target = torch.randint(5, shape[:1] + shape[2:] if len(shape) > 1 else (), generator=source)
    else:
        target = torch.rand(shape, generator=source)
    ours, stock = CrossEntropyLoss(**arguments)(x, target), torch.nn.CrossEntropyLoss(**arguments)(x, target)
    torch.testing.assert_close(ours, stock)
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), x), torch.autograd.grad(stock.sum(), x))


def test_positional_arguments_are_those_of_torch() -> None:
    weight, x, y = torch.rand(5), torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    arguments = (weight, None, 2, None, "sum", 0.1)
    torch.testing.assert_close(CrossEntropyLoss(*arguments)(x, y), torch.nn.CrossEntropyLoss(*arguments)(x, y))


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize(
    "pair", [{"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}], ids=str
)
def test_the_deprecated_pair_gives_the_same_reduction(pair: dict[str, bool]) -> None:
    assert CrossEntropyLoss(**pair).reduction == torch.nn.CrossEntropyLoss(**pair).reduction


@pytest.mark.parametrize("weight", [np.array([1.0, 2.0, 0.0]), [1.0, 2.0, 0.0]], ids=["NumPy", "list"])
def test_class_weights_may_be_numpy_or_a_list(weight: Any) -> None:
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    due = unixent.cross_entropy(x, y, weight=torch.tensor([1.0, 2.0, 0.0]))
    assert torch.equal(CrossEntropyLoss(weight)(x, y), due)
    with pytest.raises(unixent.DTypeError, match="weight: "):
        CrossEntropyLoss("balanced")


def test_a_mean_over_nothing_is_nan_by_default() -> None:
    x, y = torch.zeros(2, 3), torch.tensor([-100, -100])
    assert CrossEntropyLoss()(x, y).isnan()
    assert CrossEntropyLoss(on_empty="zero")(x, y) == 0
    with pytest.raises(unixent.EmptyMeanError):
        CrossEntropyLoss(on_empty="raise")(x, y)


def test_options_that_torch_lacks_are_those_of_the_function() -> None:
    x, y, mask = torch.randn(4, 5), torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, 0.0, 0.5, 1.0])
    loss = CrossEntropyLoss(z_loss=0.1, softcap=5.0, dtype="float64")
    due = unixent.cross_entropy(x, y, z_loss=0.1, softcap=5.0, dtype="float64", mask=mask, normalizer=3.0)
    assert torch.equal(loss(x, y, mask, normalizer=3.0), due)
    rows = CrossEntropyLoss(axis=-1)(torch.randn(2, 3, 4, 5), torch.zeros(2, 3, 4, dtype=torch.int32))
    assert rows.shape == ()


def test_autocast_gives_float32_as_torch_does() -> None:
    layer, x, y = torch.nn.Linear(5, 5), torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(x)
        ours, stock = CrossEntropyLoss()(logits, y), torch.nn.CrossEntropyLoss()(logits, y)
    assert logits.dtype is torch.bfloat16
    assert ours.dtype is stock.dtype is torch.float32
    torch.testing.assert_close(ours, stock)
    ours.backward()
    assert layer.weight.grad.dtype is torch.float32


def test_copies_and_pickles_give_the_same_loss() -> None:
    loss = CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), z_loss=0.1, reduction="sum")
    assert loss.state_dict().keys() == {"weight"}
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    for other in (copy.deepcopy(loss), torch.load(file, weights_only=False)):
        assert torch.equal(other(x, y), loss(x, y))
    other = CrossEntropyLoss(torch.ones(3), z_loss=0.1, reduction="sum")
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(x, y), loss(x, y))
    assert loss.double().weight.dtype is torch.float64


def test_repr_shows_what_is_not_the_default() -> None:
    assert repr(CrossEntropyLoss()) == "CrossEntropyLoss()"
    loss = CrossEntropyLoss(torch.ones(3), label_smoothing=0.1, softcap=30.0, on_empty="zero")
    assert repr(loss) == "CrossEntropyLoss(weight=(3,), label_smoothing=0.1, softcap=30.0, on_empty='zero')"


def test_options_are_checked_on_construction() -> None:
    with pytest.raises(unixent.OptionError, match="label_smoothing"):
        CrossEntropyLoss(label_smoothing=2.0)


def test_options_are_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.eye(4, 5), torch.tensor([0, 1, 2, 3])
    losses = (CrossEntropyLoss(label_smoothing=0.1), LinearCrossEntropyLoss(5, 4, label_smoothing=0.1))
    values = [loss(x, y) for loss in losses]

    def validate(options: unixent.LossOptions) -> None:
        raise AssertionError(options)

    monkeypatch.setattr(unixent.LossOptions, "__post_init__", validate)
    assert [loss(x, y) for loss in losses] == values


def test_an_option_can_be_assigned_and_is_checked() -> None:
    x, y = torch.eye(4, 5), torch.tensor([0, 1, 2, 3])
    loss = CrossEntropyLoss()
    loss.reduction = "sum"
    assert loss.reduction == loss.options.reduction == "sum"
    assert torch.equal(loss(x, y), CrossEntropyLoss(reduction="sum")(x, y))
    with pytest.raises(unixent.OptionError, match="reduction"):
        loss.reduction = "median"


class OtherArray:
    """An array of a framework that is not here: conversion would cut its gradient."""

    dtype, shape = "float32", (4, 3)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("converted")


def test_targets_that_are_no_tensors_are_taken_as_the_function_takes_them() -> None:
    x = torch.linspace(-1, 1, 12).view(4, 3)
    probabilities = x.softmax(1)
    for options in ({}, {"ignore_index": -1}):
        loss = CrossEntropyLoss(**options)
        for target in ([0, 2, 1, 1], np.array([0, 2, 1, 1]), probabilities.numpy(), probabilities.tolist()):
            torch.testing.assert_close(loss(x, target), loss(x, torch.as_tensor(target)))
        assert loss(x[0], 2) == loss(x[0], torch.tensor(2))
        for wrong in (None, "a", [[0], [1, 2]]):
            with pytest.raises(unixent.UnixentError, match="target"):
                loss(x, wrong)
        with pytest.raises(unixent.BackendError, match="target: expected a torch or NumPy array"):
            loss(x, OtherArray())
        for sparse in (x.to_sparse(), torch.nested.nested_tensor([x, x], layout=torch.jagged)):
            with pytest.raises(unixent.BackendError, match="target: expected a dense array"):
                loss(x, sparse)
            with pytest.raises(unixent.BackendError, match="logits: expected a dense array"):
                loss(sparse, torch.tensor([0, 2, 1, 1]))


def test_the_module_takes_a_padded_vocabulary() -> None:
    x, y = torch.linspace(-1, 1, 12).view(4, 3), torch.tensor([0, 1, 1, 0])
    loss = CrossEntropyLoss(num_classes=2, label_smoothing=0.1)
    torch.testing.assert_close(loss(x, y), CrossEntropyLoss(label_smoothing=0.1)(x[:, :2], y))
    assert "num_classes=2" in repr(loss)
