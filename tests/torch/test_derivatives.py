"""Every derivative and transform of torch, against finite differences or against the same thing done plainly."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import unixent

OPTIONS = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.2},
    "z-loss": {"z_loss": 0.1},
    "softcap": {"softcap": 1.5},
    "all": {"label_smoothing": 0.2, "z_loss": 0.3, "softcap": 1.5},
}


class Problem:
    """A small float64 problem with weights, a mask and a position that is switched off."""

    def __init__(self, seed: int = 0) -> None:
        source = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(4, 5, dtype=torch.float64, generator=source)
        self.index = torch.tensor([0, -100, 4, 2])
        self.probabilities = torch.rand(4, 5, dtype=torch.float64, generator=source)
        self.constants = {
            "weight": torch.rand(5, dtype=torch.float64, generator=source),
            "mask": torch.tensor([1.0, 1.0, 0.0, 0.5]),
        }


def reference(x: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
    """The definition, in operations that torch differentiates by itself."""
    weight, mask = options.get("weight"), options.get("mask")
    s, z, a = (options.get(name) for name in ("label_smoothing", "z_loss", "softcap"))
    x = x if a is None else a * torch.tanh(x / a)
    w = torch.ones_like(x[0]) if weight is None else weight
    v = torch.ones_like(x[:, 0]) if mask is None else mask.to(x.dtype)
    lse = torch.logsumexp(x, -1)
    far = lse[:, None] - x
    if target.is_floating_point():
        d, q = v, target
    else:
        v = torch.where(target == -100, 0, v)
        index = torch.where(target == -100, 0, target)
        d, q = v * w[index], torch.nn.functional.one_hot(index, x.shape[-1]).to(x.dtype)
    s = s or 0.0
    losses = v * ((w * ((1 - s) * q + s / x.shape[-1]) * far).sum(-1) + (z or 0.0) * lse**2)
    reduction = options.get("reduction", "mean")
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.sum() / d.sum()


@pytest.mark.parametrize("target_kind", ["index", "probability"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_first_derivatives_match_finite_differences(reduction: str, options: dict[str, Any], target_kind: str) -> None:
    problem = Problem()
    keywords = {**problem.constants, **options, "reduction": reduction}
    x = problem.logits.requires_grad_()
    if target_kind == "index":
        inputs: tuple[torch.Tensor, ...] = (x,)
        call: Callable[..., Any] = lambda x: unixent.cross_entropy(x, problem.index, **keywords)  # noqa: E731
    else:
        inputs = (x, problem.probabilities.requires_grad_())
        call = lambda x, q: unixent.cross_entropy(x, q, **keywords)  # noqa: E731
    assert gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize("target_kind", ["index", "probability"])
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_match_finite_differences(reduction: str, options: dict[str, Any], target_kind: str) -> None:
    problem = Problem()
    keywords = {**problem.constants, **options, "reduction": reduction}
    # Small: each entry of the second derivative costs a call of the first.
    x = problem.logits[:, :3].clone().requires_grad_()
    keywords["weight"] = keywords["weight"][:3]
    if target_kind == "index":
        inputs: tuple[torch.Tensor, ...] = (x,)
        target = problem.index.clamp(max=2)
        call: Callable[..., Any] = lambda x: unixent.cross_entropy(x, target, **keywords)  # noqa: E731
    else:
        inputs = (x, problem.probabilities[:, :3].clone().requires_grad_())
        call = lambda x, q: unixent.cross_entropy(x, q, **keywords)  # noqa: E731
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True, check_batched_grad=True)


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": grad,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "third order": lambda f: jacrev(hessian(f)),
    "third order, forward": lambda f: jacfwd(hessian(f)),
}


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["all"]], ids=["plain", "all"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_agree_with_the_definition(transform: Callable[[Any], Any], options: dict[str, Any]) -> None:
    problem = Problem()
    x = problem.logits[:, :3].contiguous()
    keywords = {"mask": problem.constants["mask"], "weight": problem.constants["weight"][:3], **options}
    target = problem.index.clamp(max=2)
    ours = transform(lambda x: unixent.cross_entropy(x, target, **keywords))(x)
    truth = transform(lambda x: reference(x, target, **keywords))(x)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-14)


def test_transforms_differentiate_probabilities() -> None:
    problem = Problem()
    keywords = {**problem.constants, **OPTIONS["all"]}

    def both(loss: Any) -> Any:
        return hessian(lambda pair: loss(*pair, **keywords))((problem.logits, problem.probabilities))

    ours, truth = both(unixent.cross_entropy), both(reference)
    for ours_row, truth_row in zip(ours, truth, strict=True):
        for got, due in zip(ours_row, truth_row, strict=True):
            torch.testing.assert_close(got, due, rtol=1e-10, atol=1e-14)


def per_item(call: Callable[..., Any], *stacked: torch.Tensor) -> torch.Tensor:
    return torch.stack([call(*items) for items in zip(*stacked, strict=True)])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_vmap_is_one_call_per_item(reduction: str) -> None:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=source)
    y = torch.tensor([[0, 1, -100, 2], [-100, -100, -100, -100], [4, 4, 3, 0]])
    mask, weight = torch.rand(3, 4, generator=source), torch.rand(3, 5, dtype=torch.float64, generator=source)

    def loss(x: Any, y: Any, mask: Any, weight: Any = None) -> Any:
        return unixent.cross_entropy(x, y, mask=mask, weight=weight, reduction=reduction, label_smoothing=0.1)

    assert torch.equal(vmap(loss)(x, y, mask), per_item(loss, x, y, mask))
    assert torch.equal(vmap(loss)(x, y, mask, weight), per_item(loss, x, y, mask, weight))
    loss_grad = grad(lambda *inputs: loss(*inputs).sum())
    assert torch.equal(vmap(loss_grad)(x, y, mask), per_item(loss_grad, x, y, mask))
    assert torch.equal(vmap(loss_grad)(x, y, mask, weight), per_item(loss_grad, x, y, mask, weight))
    # Batched along another axis, and only some of the arguments.
    assert torch.equal(vmap(loss_grad, in_dims=(2, None, None))(x.movedim(0, 2), y[0], mask[0]),
                       per_item(lambda x: loss_grad(x, y[0], mask[0]), x))  # fmt: skip
    assert torch.equal(
        vmap(lambda x: vmap(loss_grad, in_dims=(None, 0, 0))(x, y, mask))(x)[2, 0], loss_grad(x[2], y[0], mask[0])
    )


def test_an_index_out_of_range_is_nan_under_vmap() -> None:
    x = torch.zeros(2, 3, 4)
    y = torch.tensor([[0, 1, 2], [0, 9, 2]])
    losses = vmap(lambda x, y: unixent.cross_entropy(x, y, reduction="none"))(x, y)
    assert losses.isnan().tolist() == [[False, False, False], [False, True, False]]
    loss_grads = vmap(grad(lambda x, y: unixent.cross_entropy(x, y, reduction="sum")))(x, y)
    assert loss_grads.isnan().all(-1).tolist() == losses.isnan().tolist()
    assert loss_grads.isnan().any(-1).tolist() == losses.isnan().tolist()


def test_value_and_grad_goes_through_transforms() -> None:
    problem = Problem()

    def penalty(x: Any, differentiate: Any) -> Any:
        return differentiate(x).square().sum()

    ours = grad(lambda x: penalty(x, lambda x: unixent.value_and_grad(x, problem.index)[1]))(problem.logits)
    truth = grad(lambda x: penalty(x, grad(lambda x: reference(x, problem.index))))(problem.logits)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-14)


def test_functionalize_gives_the_same_loss() -> None:
    problem = Problem()
    value = functionalize(lambda x: unixent.cross_entropy(x, problem.index))(problem.logits)
    torch.testing.assert_close(value, reference(problem.logits, problem.index), rtol=1e-12, atol=0)


def test_vjp_and_jvp_agree() -> None:
    problem = Problem()
    tangent = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def call(x: Any) -> Any:
        return unixent.cross_entropy(x, problem.index, **problem.constants, z_loss=0.1)

    value, change = jvp(call, (problem.logits,), (tangent,))
    same, vjp_of = vjp(call, problem.logits)
    assert torch.equal(value, same)
    torch.testing.assert_close(change, (vjp_of(torch.ones((), dtype=torch.float64))[0] * tangent).sum())


def test_forward_mode_keeps_half_precision() -> None:
    x = Problem().logits.to(torch.bfloat16)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(unixent.cross_entropy(dual, torch.tensor([0, 1, 2, 3]))).tangent
    # A shift of all logits changes nothing.
    assert tangent.dtype is torch.bfloat16
    assert abs(tangent.item()) < 2e-3


@pytest.mark.parametrize("upstream", [1.0, 3.0, 0.0])
def test_a_kept_graph_gives_the_same_gradient_twice(upstream: float) -> None:
    problem = Problem()
    x = problem.logits.requires_grad_()
    loss = upstream * unixent.cross_entropy(x, problem.index)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    before = once.clone()
    (twice,) = torch.autograd.grad(loss, x, retain_graph=True)
    (last,) = torch.autograd.grad(loss, x)
    assert torch.equal(once, before)
    assert torch.equal(twice, before)
    assert torch.equal(last, before)


@pytest.mark.parametrize("form", ["options", "linear", "sparse", "linear sparse"])
def test_a_gradient_may_be_written_to_while_its_graph_is_kept(form: str) -> None:
    target = torch.tensor([0, 4, 2, -100])
    if "sparse" in form:
        target = unixent.TopK(torch.tensor([[0, 1]] * 4), probs=torch.full((4, 2), 0.4), tail="bucket")
    x = torch.linspace(-2, 2, 20).reshape(4, 5).requires_grad_()
    if "linear" in form:
        loss = unixent.linear_cross_entropy(x, torch.eye(5), target, label_smoothing=0.1)
    else:
        loss = unixent.cross_entropy(x, target, label_smoothing=0.1)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    before = once.clone()
    once.zero_()
    assert torch.equal(torch.autograd.grad(loss, x)[0], before)


def test_gradients_add_up_and_do_not_share_memory() -> None:
    problem = Problem()
    x = problem.logits.requires_grad_()
    loss = unixent.cross_entropy(x, problem.index)
    loss.backward(retain_graph=True)
    one = x.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, 2 * one)
    loss.backward()
    assert torch.equal(x.grad, 3 * one)


def test_a_scaled_half_loss_keeps_what_would_underflow() -> None:
    """Loss scaling as of torch.amp.GradScaler: the gradient is rounded once, after the scale."""
    x = torch.zeros(64, 4096, dtype=torch.float16, requires_grad=True)
    (unixent.cross_entropy(x, torch.zeros(64, dtype=torch.int64), dtype="float32") * 65536).backward()
    assert x.grad[0, 1].item() == 65536 / 64 / 4096


def test_a_checkpointed_loss_has_the_same_gradient() -> None:
    problem = Problem()
    x = problem.logits.requires_grad_()
    torch.utils.checkpoint.checkpoint(unixent.cross_entropy, x, problem.index, use_reentrant=False).backward()
    assert torch.equal(x.grad, unixent.value_and_grad(problem.logits, problem.index)[1])


@pytest.mark.parametrize("options", [*OPTIONS.values(), {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("index", [[0, 1, 4, 2], [0, -100, 4, 2]], ids=str)
def test_logits_changed_in_place_never_give_another_gradient(index: list[int], options: dict[str, Any]) -> None:
    logits, target = Problem().logits, torch.tensor(index)
    leaf = logits.clone().requires_grad_()
    x = leaf * 1
    loss = unixent.cross_entropy(x, target, **options).sum()
    x.detach().mul_(2)
    with suppress(RuntimeError):  # "modified by an inplace operation"
        loss.backward()
    due = unixent.value_and_grad(logits, target, **options)[1]
    assert leaf.grad is None or torch.allclose(leaf.grad, due, rtol=1e-12, atol=0)
