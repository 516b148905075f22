"""A class with a logit of -inf does not exist for a split loss either, whichever process holds it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unixent

INF = float("inf")
LOGITS = torch.tensor([[0.5, -INF, 0.0, -1.0, -INF], [1.0, -INF, 2.0, 0.3, -INF]], dtype=torch.float64)
INDEX = torch.tensor([0, 3])
PROBABILITIES = torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.2, 0.3, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"softcap": 1.5}, {"softcap": 1.5, "reduction": "none"}], ids=str)
@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["indices", "probabilities"])
def test_value_and_derivatives_are_the_whole_ones(on_ranks, target: torch.Tensor, options: dict[str, Any]) -> None:
    def derivatives(x: torch.Tensor, y: torch.Tensor, **given: Any) -> tuple[torch.Tensor, ...]:
        x = x.clone().requires_grad_()
        loss = unixent.cross_entropy(x, y, **given)
        (gradient,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        return loss.detach(), gradient.detach(), second

    whole = derivatives(LOGITS, target, **options)

    def work(ranks):
        columns = ranks.columns(5)
        local = target[:, columns] if target.ndim == 2 else target
        split = derivatives(LOGITS[:, columns], local, parallel=ranks.config, **options)
        torch.testing.assert_close(split[0], whole[0])
        for got, expected in zip(split[1:], whole[1:], strict=True):
            torch.testing.assert_close(got, expected[:, columns])

    on_ranks(1, 2, work)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_upstream_gradient_of_zero_gives_a_gradient_of_zero(on_ranks, reduction: str) -> None:
    def work(ranks):
        columns = ranks.columns(5)
        q = PROBABILITIES[:, columns].clone().requires_grad_()
        loss = unixent.cross_entropy(LOGITS[:, columns], q, reduction=reduction, parallel=ranks.config)
        (gradient,) = torch.autograd.grad(loss, q, torch.zeros_like(loss))
        assert not gradient.any()

    on_ranks(1, 2, work)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_the_linear_form_is_the_whole_one(on_ranks, softcap: float | None) -> None:
    hidden, classifier, bias = torch.ones(2, 3).double(), torch.linspace(-1, 1, 15).double().view(5, 3), LOGITS[0]

    def losses(classifier: torch.Tensor, bias: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        bias = bias.clone().requires_grad_()
        loss = unixent.linear_cross_entropy(hidden, classifier, INDEX, bias=bias, softcap=softcap, **given)
        loss.backward()
        return loss.detach(), bias.grad

    loss, gradient = losses(classifier, bias)

    def work(ranks):
        columns = ranks.columns(5)
        split = losses(classifier[columns], bias[columns], parallel=ranks.config)
        torch.testing.assert_close(split, (loss, gradient[columns]))

    on_ranks(1, 2, work)
