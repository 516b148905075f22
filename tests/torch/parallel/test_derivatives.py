"""Beyond the first derivative: second ones across ranks, against those of the whole loss; a third is refused."""

from __future__ import annotations

import pytest
import torch

import unixent

N, C = 5, 9
GENERATOR = torch.Generator().manual_seed(1)
LOGITS = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
INDEX = torch.randint(C, (N,), generator=GENERATOR)
INDEX[3] = -100
PROBABILITIES = torch.rand(N, C, generator=GENERATOR, dtype=torch.float64)
DIRECTION = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
OTHER = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
WEIGHT = torch.rand(C, generator=GENERATOR, dtype=torch.float64)

CASES = {
    "indices": (INDEX, {}),
    "smoothed": (INDEX, {"label_smoothing": 0.2, "weight": WEIGHT, "z_loss": 0.1, "softcap": 2.0}),
    "each": (INDEX, {"reduction": "none", "z_loss": 0.1}),
    "probabilities": (PROBABILITIES, {"label_smoothing": 0.2, "weight": WEIGHT, "z_loss": 0.1, "softcap": 2.0}),
}


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def of_ranks(ranks, target):
    rows, columns = ranks.rows(N), ranks.columns(C)
    return (rows, columns), target[rows, columns] if target.ndim == 2 else target[rows]


@pytest.mark.parametrize("name", CASES)
def test_second_derivatives_are_those_of_the_whole_loss(on_ranks, name):
    target, options = CASES[name]

    def second(x, q, along, of_target, **more):
        leaves = [x, q] if q.requires_grad else [x]
        loss = unixent.cross_entropy(x, q, **options, **more)
        grads = torch.autograd.grad(loss.square().sum() if loss.ndim else loss, leaves, create_graph=True)
        inner = sum((g * d).sum() for g, d in zip(grads, (along, of_target), strict=False))
        return torch.autograd.grad(inner, leaves)

    leaf = LOGITS.clone().requires_grad_()
    q = target.clone().requires_grad_(target.is_floating_point())
    expected = second(leaf, q, DIRECTION, OTHER)

    def work(ranks):
        part, own = of_ranks(ranks, target)
        x, own = LOGITS[part].clone().requires_grad_(), own.clone().requires_grad_(target.is_floating_point())
        grads_here = second(x, own, DIRECTION[part], OTHER[part], parallel=ranks.config)
        for got, due in zip(grads_here, expected, strict=True):
            close(got, due[part])

    on_ranks(1, 2, work)
    on_ranks(2, 2, work)


def test_an_upstream_gradient_has_a_derivative(on_ranks):
    """The derivative by the upstream gradient, the same on all ranks, is <gradient, direction> over all of them."""
    grad = unixent.value_and_grad(LOGITS, INDEX)[1]

    def work(ranks):
        part, own = of_ranks(ranks, INDEX)
        x, upstream = LOGITS[part].clone().requires_grad_(), torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        loss = unixent.cross_entropy(x, own, parallel=ranks.config)
        (grads_here,) = torch.autograd.grad(loss, x, upstream, create_graph=True)
        (by_upstream,) = torch.autograd.grad((grads_here * DIRECTION[part]).sum(), upstream)
        close(by_upstream, (grad * DIRECTION).sum())

    on_ranks(2, 2, work)


def test_a_third_derivative_is_refused(on_ranks):
    def work(ranks):
        x = LOGITS[:, ranks.columns(C)].clone().requires_grad_()
        loss = unixent.cross_entropy(x, INDEX, parallel=ranks.config)
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        with pytest.raises(unixent.BackendError, match="has first and second derivatives"):
            torch.autograd.grad(second.sum(), x)

    on_ranks(1, 2, work)


def test_the_fused_form_refuses_second_derivatives(on_ranks):
    hidden, classifier = torch.randn(N, 3), torch.randn(C, 3)

    def work(ranks):
        h, w = hidden.clone().requires_grad_(), classifier[ranks.columns(C)].clone().requires_grad_()

        loss = unixent.linear_cross_entropy(h, w, INDEX, parallel=ranks.config)
        (first,) = torch.autograd.grad(loss, h, create_graph=True)
        with pytest.raises(unixent.BackendError, match="has a plain backward pass"):
            first.sum().backward()

    on_ranks(1, 2, work)


def test_positions_alone_keep_every_derivative(on_ranks):
    """Without split classes the whole backend is at work: the fused form's second derivative, torch.func, vmap."""
    hidden, classifier = torch.randn(N, 3, dtype=torch.float64), torch.randn(C, 3, dtype=torch.float64)

    def hessian(h, rows, **more):
        def loss(h):
            return unixent.linear_cross_entropy(h, classifier, INDEX[rows], **more)

        x = h.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = hessian(hidden, slice(None))

    def work(ranks):
        rows = ranks.rows(N)
        close(hessian(hidden[rows], rows, parallel=ranks.config), expected[rows])

    on_ranks(2, 1, work)
