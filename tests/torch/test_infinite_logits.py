"""A class with a logit of -inf is as if it did not exist, in every derivative and option; one of +inf makes NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp

import unixent

INF = float("inf")
# Class 1 does not exist.
LOGITS = torch.tensor([[0.5, -INF, 0.0, -1.0], [1.0, -INF, 2.0, 0.3]], dtype=torch.float64)
TARGETS = {
    "index": torch.tensor([0, 3]),
    "probability": torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.2, 0.3]], dtype=torch.float64),
}
EXISTING = [0, 2, 3]
OPTIONS = [{}, {"softcap": 1.5}, {"softcap": 1.5, "z_loss": 0.1}]


def existing_target(target: Tensor) -> Tensor:
    return target[:, EXISTING] if target.ndim == 2 else torch.where(target > 1, target - 1, target)


def duals(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The derivative along ones, by dual numbers."""

    def directional(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent

    return directional


def double_backward(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def squares(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    return squares


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "value": lambda f: f,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "dual numbers": duals,
    "double backward": double_backward,
    "hessian": hessian,
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "third order": lambda f: jacfwd(hessian(f)),
}


def without_class(derivative: Tensor, kept_axes: int) -> Tensor:
    """A derivative without the entries of class 1, each of which is 0."""
    for axis in range(kept_axes, derivative.ndim):
        if derivative.shape[axis] == 4:
            assert not derivative.select(axis, 1).any()
            derivative = derivative.index_select(axis, torch.tensor(EXISTING))
    return derivative


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_derivatives_are_those_without_the_class(
    transform: Callable[[Any], Any], options: dict[str, Any], target: Tensor
) -> None:
    for reduction in ("mean", "none"):

        def derivative(x: Tensor, y: Tensor, reduction: str = reduction) -> Tensor:
            return transform(lambda x: unixent.cross_entropy(x, y, reduction=reduction, **options))(x)

        expected = derivative(LOGITS[:, EXISTING], existing_target(target))
        torch.testing.assert_close(without_class(derivative(LOGITS, target), 0), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tangents_of_zero_are_as_none(options: dict[str, Any]) -> None:
    q, along = TARGETS["probability"], torch.ones_like(LOGITS)

    def moved(x: Tensor, q: Tensor) -> Tensor:
        return jvp(lambda x, q: unixent.cross_entropy(x, q, **options), (x, q), (along, torch.zeros_like(q)))[1]

    alone = jvp(lambda x: unixent.cross_entropy(x, q, **options), (LOGITS,), (along,))[1]
    torch.testing.assert_close(moved(LOGITS, q), alone)
    second = jvp(moved, (LOGITS, q), (along, torch.zeros_like(q)))[1]
    assert second.isfinite()


@pytest.mark.parametrize("way", ["autograd", "batched", "vjp", "value_and_grad"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_upstream_gradient_of_zero_gives_a_gradient_of_zero(way: str, reduction: str) -> None:
    """Also for probabilities, whose gradient is infinite where the logit is -inf."""
    q = TARGETS["probability"].clone().requires_grad_()
    loss = unixent.cross_entropy(LOGITS, q, reduction=reduction)
    zeros = torch.zeros_like(loss)
    if way == "vjp":
        (gradient,) = vjp(lambda q: unixent.cross_entropy(LOGITS, q, reduction=reduction), q.detach())[1](zeros)
    elif way == "value_and_grad":
        options: dict[str, Any] = {"reduction": reduction, "grad_output": zeros, "wrt": "target"}
        gradient = unixent.value_and_grad(LOGITS, q.detach(), **options)[1]
    elif way == "batched":
        (gradient,) = torch.autograd.grad(loss, q, torch.stack([zeros, zeros]), is_grads_batched=True)
    else:
        (gradient,) = torch.autograd.grad(loss, q, zeros)
    assert not gradient.any()


def test_the_gradient_of_a_probability_is_infinite_in_its_own_row_alone() -> None:
    def loss(q: Tensor) -> Tensor:
        return unixent.cross_entropy(LOGITS, q, reduction="none")

    for jacobian in (jacrev(loss)(TARGETS["probability"]), jacfwd(loss)(TARGETS["probability"])):
        assert jacobian[[0, 1], [0, 1], 1].isinf().all()
        assert jacobian.isinf().sum() == 2
        assert not jacobian.isnan().any()


HIDDEN = torch.tensor([[0.0, 1.0], [1.0, -2.0]], dtype=torch.float64)
CLASSIFIER = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)
BIAS = torch.tensor([0.1, -INF, 0.0, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_derivatives_of_the_linear_form_are_those_without_the_class(
    transform: Callable[[Any], Any], options: dict[str, Any]
) -> None:
    q = TARGETS["probability"]

    def derivative(hidden: Tensor, classes: list[int]) -> Tensor:
        def loss(hidden: Tensor) -> Tensor:
            return unixent.linear_cross_entropy(
                hidden, CLASSIFIER[classes], q[:, classes], bias=BIAS[classes], **options
            )

        return transform(loss)(hidden)

    everything = derivative(HIDDEN, [0, 1, 2, 3])
    torch.testing.assert_close(everything, derivative(HIDDEN, EXISTING), rtol=1e-12, atol=1e-15)


def test_every_gradient_of_the_linear_form_in_forward_mode_is_that_in_reverse() -> None:
    def loss(*operands: Tensor) -> Tensor:
        hidden, classifier, bias, q = operands
        return unixent.linear_cross_entropy(hidden, classifier, q, bias=bias, reduction="none")

    operands, argnums = (HIDDEN, CLASSIFIER, BIAS, TARGETS["probability"]), (0, 1, 2, 3)
    forward, reverse = jacfwd(loss, argnums)(*operands), jacrev(loss, argnums)(*operands)
    torch.testing.assert_close(forward, reverse, rtol=1e-12, atol=1e-15)
    for jacobian in (*forward, *reverse):
        assert not jacobian.isnan().any()


def losses_and_gradient(call: Callable[..., Tensor], x: Tensor, *others: Any, **options: Any) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    losses = call(x, *others, reduction="none", **options)
    losses.sum().backward()
    return losses.detach(), x.grad


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_softcap_leaves_infinite_logits_infinite(compiled: bool, dtype: torch.dtype, target: Tensor) -> None:
    x, call = LOGITS.clone().to(dtype), unixent.cross_entropy
    if compiled:
        torch.compiler.reset()
        call = torch.compile(call, backend="aot_eager", fullgraph=True)
    losses, gradient = losses_and_gradient(call, x, target, softcap=5.0)
    expected, kept = losses_and_gradient(unixent.cross_entropy, x[:, EXISTING], existing_target(target), softcap=5.0)
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).eps}
    torch.testing.assert_close(losses, expected, **tolerance)
    torch.testing.assert_close(without_class(gradient, 0), kept, **tolerance)
    x[0, 2] = INF
    losses, gradient = losses_and_gradient(call, x, target, softcap=5.0)
    assert losses.isnan().tolist() == [True, False]
    assert gradient.isnan().any(1).tolist() == [True, False]


def test_softcap_leaves_infinite_logits_of_the_linear_form_infinite() -> None:
    def loss(bias: Tensor) -> Tensor:
        return unixent.linear_cross_entropy(HIDDEN, CLASSIFIER, TARGETS["index"], bias=bias, softcap=1.0)

    expected = unixent.linear_cross_entropy(
        HIDDEN, CLASSIFIER[EXISTING], existing_target(TARGETS["index"]), bias=BIAS[EXISTING], softcap=1.0
    )
    for call in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(call(BIAS), expected)
        assert call(BIAS.abs()).isnan()
    assert grad(loss)(BIAS)[1] == 0
