"""A padded vocabulary split over processes: what lies beyond num_classes does not exist, whoever holds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

import unixent

N, HELD = 4, 8
NAN = float("nan")
LOGITS = torch.cos(torch.arange(1.0 * N * HELD, dtype=torch.float64)).view(N, HELD)
CLASSIFIER = torch.sin(torch.arange(3.0 * HELD, dtype=torch.float64)).view(HELD, 3)
HIDDEN = torch.linspace(-1, 1, 3 * N, dtype=torch.float64).view(N, 3)
INDEX = torch.tensor([0, 2, 1, 2])
PROBABILITIES = LOGITS.softmax(1)
OPTIONS: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 0.1}


def padded(array: torch.Tensor, dim: int, classes: int) -> torch.Tensor:
    array = array.clone()
    array.narrow(dim, classes, HELD - classes).fill_(NAN)
    return array


def expected(gradient: torch.Tensor, dim: int) -> torch.Tensor:
    shape = list(gradient.shape)
    shape[dim] = HELD - shape[dim]
    return torch.cat((gradient, gradient.new_zeros(shape)), dim)


@pytest.mark.parametrize("classes", [7, 3, 1])
@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["indices", "probabilities"])
@pytest.mark.parametrize("split_by", ["groups", "DTensor"])
def test_the_logits_form_is_that_of_the_classes_that_exist(on_ranks, split_by: str, target: torch.Tensor, classes: int):
    """With 7, 3 and 1 of 8 classes on 2 processes, the second holds 3, or none."""
    y = target % classes if target.ndim == 1 else target
    existing = y[:, :classes] if y.ndim == 2 else y
    loss, gradient = unixent.value_and_grad(LOGITS[:, :classes], existing, **OPTIONS)
    x, y = padded(LOGITS, 1, classes), padded(y, 1, classes) if y.ndim == 2 else y

    def work(ranks):
        columns = slice(4, 8) if ranks.rank else slice(0, 4)
        options = {**OPTIONS, "num_classes": classes}
        if split_by == "DTensor":
            placements = [Replicate(), Shard(1)]
            leaf = DTensor.from_local(x[:, columns].clone(), ranks.mesh, placements, run_check=False).requires_grad_()
            own = y if y.ndim == 1 else DTensor.from_local(y[:, columns], ranks.mesh, placements, run_check=False)
        else:
            leaf, own = x[:, columns].clone().requires_grad_(), y if y.ndim == 1 else y[:, columns]
            options["parallel"] = ranks.config
        local = lambda array: array.to_local() if split_by == "DTensor" else array  # noqa: E731
        value = unixent.cross_entropy(leaf, own, **options)
        value.backward()
        torch.testing.assert_close(local(value), loss)
        torch.testing.assert_close(local(leaf.grad), expected(gradient, 1)[:, columns])
        value, by_hand = unixent.value_and_grad(leaf.detach(), own, **options)
        torch.testing.assert_close(local(value), loss)
        torch.testing.assert_close(local(by_hand), expected(gradient, 1)[:, columns])

    on_ranks(1, 2, work)


@pytest.mark.parametrize("classes", [7, 3])
@pytest.mark.parametrize("split_by", ["groups", "DTensor"])
def test_the_linear_form_is_that_of_the_classes_that_exist(on_ranks, split_by: str, classes: int):
    loss, grads = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER[:classes], INDEX, **OPTIONS)
    weight = padded(CLASSIFIER, 0, classes)

    def work(ranks):
        rows = slice(4, 8) if ranks.rank else slice(0, 4)
        hidden, classifier = HIDDEN.clone(), weight[rows].clone()
        options = {**OPTIONS, "num_classes": classes}
        if split_by == "DTensor":
            hidden = DTensor.from_local(hidden, ranks.mesh, [Replicate(), Replicate()], run_check=False)
            classifier = DTensor.from_local(classifier, ranks.mesh, [Replicate(), Shard(0)], run_check=False)
        else:
            options["parallel"] = ranks.config
        local = lambda array: array.to_local() if split_by == "DTensor" else array  # noqa: E731
        hidden.requires_grad_(), classifier.requires_grad_()
        value = unixent.linear_cross_entropy(hidden, classifier, INDEX, **options)
        value.backward()
        due = grads[0], expected(grads[1], 0)[rows]
        torch.testing.assert_close(local(value), loss)
        torch.testing.assert_close((local(hidden.grad), local(classifier.grad)), due)
        value, by_hand = unixent.linear_value_and_grad(hidden.detach(), classifier.detach(), INDEX, **options)
        torch.testing.assert_close(local(value), loss)
        torch.testing.assert_close(tuple(map(local, by_hand)), due)

    on_ranks(1, 2, work)
