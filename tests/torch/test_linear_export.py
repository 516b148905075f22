"""The fused linear form in an exported program: saved and loaded, trained, differentiated as far as it can be."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import unixent

unixent.get_backend("torch")

INDEX = torch.tensor([0, 3, -100, 1, 4, 2, 2])


class Head(torch.nn.Module):
    def __init__(self, linear_operands: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        hidden, classifier, bias = linear_operands(len(INDEX), 3, 5)
        self.options, self.example = options, hidden.detach()
        self.hidden = torch.nn.Linear(3, 3, dtype=hidden.dtype)
        self.classifier, self.bias = torch.nn.Parameter(classifier.detach()), torch.nn.Parameter(bias.detach())

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return unixent.linear_cross_entropy(hidden, self.classifier, target, bias=self.bias, **self.options)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_loss_can_be_saved_and_loaded(linear_operands: Callable[..., Any], strict: bool) -> None:
    head = Head(linear_operands)
    program = torch.export.export(head, (head.example, INDEX), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    torch.testing.assert_close(loaded(head.example, INDEX), head(head.example, INDEX), rtol=0, atol=0)


@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"normalizer": 3.0, "label_smoothing": 0.1}], ids=str)
def test_an_exported_loss_is_trained_as_the_eager_one(
    linear_operands: Callable[..., Any], strict: bool, options: dict[str, Any]
) -> None:
    head = Head(linear_operands, **options)
    x, rows = head.example, torch.export.Dim("rows", min=2)
    shapes = {"x": {0: rows}, "target": {0: rows}}
    program = torch.export.export(head, (x, INDEX), dynamic_shapes=shapes, strict=strict).module()
    for examples in ((x, INDEX), (2 * x[:3], INDEX[:3])):
        exported, eager = program(*examples), head(*examples)
        torch.testing.assert_close(exported, eager)
        due = torch.autograd.grad((eager * 3).sum(), list(head.parameters()))
        parameters = dict(program.named_parameters())
        got = torch.autograd.grad((exported * 3).sum(), [parameters[name] for name, _ in head.named_parameters()])
        torch.testing.assert_close(got, due)


def test_an_exported_loss_has_gradients_of_inputs_that_had_none_when_it_was_exported(
    linear_operands: Callable[..., Any],
) -> None:
    head = Head(linear_operands).requires_grad_(False)
    program, x = torch.export.export(head, (head.example, INDEX)).module(), head.example.clone().requires_grad_()
    due = torch.autograd.grad(head(x, INDEX), x)
    torch.testing.assert_close(torch.autograd.grad(program(x, INDEX), x), due)


def test_a_second_derivative_of_an_exported_loss_is_refused_by_name(linear_operands: Callable[..., Any]) -> None:
    head = Head(linear_operands)
    x = head.example.clone().requires_grad_()
    program = torch.export.export(head, (x, INDEX)).module()
    (first,) = torch.autograd.grad(program(x, INDEX), x, create_graph=True)
    torch.testing.assert_close(first, torch.autograd.grad(head(x, INDEX), x)[0])
    with pytest.raises(unixent.BackendError, match="an exported program has no second derivative"):
        first.sum().backward()
