"""Sparse targets in torch: every derivative and transform, in both forms, against the usual formulas."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import unixent
from unixent import TopK
from unixent.logit_transform import LogitTransform
from unixent_torch import CrossEntropyLoss, LinearCrossEntropyLoss
from unixent_torch.kernel import KernelSpec
from unixent_torch.positions import kernel, native
from unixent_torch.positions.rows import Columns, StatsSpec

TAILS = ("drop", "renormalize", "bucket")
generator = torch.Generator().manual_seed(0)
X = 3 * torch.randn(5, 7, dtype=torch.float64, generator=generator)
IDS = torch.stack([torch.randperm(7, generator=generator)[:3] for _ in range(5)])
IDS[1] = IDS[1, 0]
IDS[2, 1:] = -100
Q = torch.rand(5, 3, dtype=torch.float64, generator=generator) / 3
MASK = torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0], dtype=torch.float64)
WEIGHT = torch.rand(7, dtype=torch.float64, generator=generator) + 0.5
OPTIONS: dict[str, Any] = {"softcap": 4.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.05}

Loss = Callable[[Tensor, Tensor], Tensor]


def ours(tail: Any, log: bool) -> Loss:
    def loss(x: Tensor, q: Tensor) -> Tensor:
        target = TopK(IDS, log_probs=q, tail=tail) if log else TopK(IDS, probs=q, tail=tail)
        each = unixent.cross_entropy(x, target, reduction="none", mask=MASK, weight=WEIGHT, **OPTIONS)
        return torch.sin(each).sum() + unixent.cross_entropy(x, target, mask=MASK)

    return loss


def usual(tail: str, log: bool) -> Loss:
    def each(x: Tensor, q: Tensor, weight: Tensor, s: float, z: float) -> Tensor:
        nll = -x.log_softmax(-1)
        padding, index = IDS < 0, IDS.clamp(min=0)
        q = torch.where(padding, 0, q.exp() if log else q)
        total = q.sum(-1)
        part = (weight[index] * q * nll.gather(-1, index)).sum(-1)
        if tail == "renormalize":
            part = part / total
        if tail == "bucket":
            free = ((index.unsqueeze(-1) == torch.arange(7)) & ~padding.unsqueeze(-1)).sum(-2) == 0
            part = part + (1 - total).clamp(min=0) * -torch.where(free, -nll, -torch.inf).logsumexp(-1)
        return MASK * ((1 - s) * part + s / 7 * (weight * nll).sum(-1) + z * x.logsumexp(-1) ** 2)

    def loss(x: Tensor, q: Tensor) -> Tensor:
        capped = 4.0 * torch.tanh(x / 4.0) / 0.7
        first = torch.sin(each(capped, q, WEIGHT, 0.1, 0.05)).sum()
        return first + each(x, q, torch.ones(7, dtype=x.dtype), 0.0, 0.0).sum() / MASK.sum()

    return loss


def close(got: Any, due: Any) -> None:
    torch.testing.assert_close(got, due, rtol=1e-10, atol=1e-12)


def grads(loss: Loss, x: Tensor, q: Tensor) -> tuple[Tensor, ...]:
    leaves = x.clone().requires_grad_(), q.clone().requires_grad_()
    return torch.autograd.grad(loss(*leaves), leaves)


CASES = [(tail, log) for tail in TAILS for log in (False, True)]


@pytest.mark.parametrize(("tail", "log"), CASES)
def test_derivatives_of_every_order_and_transform(tail: str, log: bool) -> None:
    one, other, q = ours(tail, log), usual(tail, log), Q.log() if log else Q
    close(one(X, q), other(X, q))
    close(grads(one, X, q), grads(other, X, q))
    close(torch.func.grad(one, (0, 1))(X, q), torch.func.grad(other, (0, 1))(X, q))
    along = (torch.randn_like(X), torch.randn_like(q))
    close(torch.func.jvp(one, (X, q), along), torch.func.jvp(other, (X, q), along))
    batch = torch.stack([X, 2 * X, -X]), torch.stack([q, q / 2, q / 3])
    close(torch.func.vmap(one)(*batch), torch.func.vmap(other)(*batch))
    for second in (torch.autograd.functional.hessian, lambda f, x: torch.func.hessian(f, (0, 1))(*x)):
        close(second(one, (X, q)), second(other, (X, q)))


@pytest.mark.parametrize("tail", TAILS)
def test_the_compiler_takes_them_whole(tail: str) -> None:
    one = ours(tail, False)
    compiled = torch.compile(one, fullgraph=True, backend="aot_eager")
    close(compiled(X, Q), one(X, Q))
    close(grads(compiled, X, Q), grads(one, X, Q))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_without_autograd_are_those_of_autograd(tail: Any, compiled: bool) -> None:
    hidden, classifier, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 4), (7, 4), (7,)))
    leaves = [each.clone().requires_grad_() for each in (hidden, classifier, bias, Q)]
    names, options = ("hidden", "classifier", "bias", "target"), {**OPTIONS, "mask": MASK, "weight": WEIGHT}

    def both(hidden: Tensor, classifier: Tensor, bias: Tensor, q: Tensor) -> Any:
        target = TopK(IDS, probs=q, tail=tail)
        return unixent.linear_value_and_grad(hidden, classifier, target, bias=bias, wrt=names, chunk=2, **options)

    call = torch.compile(both, fullgraph=True, backend="aot_eager") if compiled else both
    value, gradients = call(hidden, classifier, bias, Q)
    target = TopK(IDS, probs=leaves[3], tail=tail)
    loss = unixent.linear_cross_entropy(*leaves[:2], target, bias=leaves[2], chunk=2, **options)
    close(value, loss.detach())
    close(gradients, torch.autograd.grad(loss, leaves))
    logits = hidden @ classifier.T + bias
    plain, (of_logits, of_q) = unixent.value_and_grad(
        logits, TopK(IDS, probs=Q, tail=tail), wrt=("logits", "target"), **options
    )
    close((plain, of_logits @ classifier, of_q), (value, gradients[0], gradients[3]))


def test_a_probability_of_an_impossible_class_has_an_infinite_derivative() -> None:
    x = torch.tensor([[-torch.inf, 0.0, 1.0]], requires_grad=True)
    q = torch.tensor([[0.0, 0.5]], requires_grad=True)
    loss = unixent.cross_entropy(x, TopK(torch.tensor([[0, 1]]), probs=q))
    for_x, for_q = torch.autograd.grad(loss, (x, q))
    value, (x_again, q_again) = unixent.value_and_grad(
        x.detach(), TopK(torch.tensor([[0, 1]]), probs=q.detach()), wrt=("logits", "target")
    )
    assert for_q[0, 0] == q_again[0, 0] == torch.inf
    torch.testing.assert_close((for_x, for_q, loss.detach()), (x_again, q_again, value))
    assert for_x.isfinite().all()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_nothing_is_kept_for_the_backward_pass_but_logits_and_a_scalars_gradient(reduction: Any) -> None:
    x = torch.randn(64, 1000, requires_grad=True)
    ids, q = torch.randint(1000, (64, 5)), torch.rand(64, 5)
    for tail in ("drop", "bucket"):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda each, kept=kept: kept.append(each) or each, lambda x: x):
            loss = unixent.cross_entropy(x, TopK(ids, probs=q, tail=tail), reduction=reduction)  # type: ignore[arg-type]
        large = {each.data_ptr() for each in kept if each.numel() >= 64_000}
        assert large > {x.data_ptr()} if reduction == "mean" else large == {x.data_ptr()}
        assert len(large) == 1 + (reduction == "mean")
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert grad.data_ptr() in large or reduction == "none"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("form", ["logits", "linear"])
def test_the_gradient_formed_early_serves_every_backward_pass(form: str, tail: Any, dtype: torch.dtype) -> None:
    hidden, classifier = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    leaves = [
        each.to(dtype, copy=True).requires_grad_() for each in ((X,) if form == "logits" else (hidden, classifier))
    ]
    q, tolerance = Q.to(dtype, copy=True).requires_grad_(), 2e-2 if dtype == torch.bfloat16 else 1e-5
    function = unixent.cross_entropy if form == "logits" else unixent.linear_cross_entropy
    rest: dict[str, Any] = {"mask": MASK, "weight": WEIGHT, **OPTIONS}

    def each_gradient(scale: float) -> Any:
        """By statistics, whose gradient waits for the upstream one: without a reduction."""
        losses = function(*leaves, TopK(IDS, probs=q, tail=tail), reduction="none", **rest)
        return torch.autograd.grad(losses.sum() / MASK.sum() * scale, (*leaves, q))

    loss = function(*leaves, TopK(IDS, probs=q, tail=tail), **rest)
    for scale in (1.0, -3.0, 0.0, 1.0):
        upstream = torch.tensor(scale, dtype=loss.dtype)
        got = torch.autograd.grad(loss, (*leaves, q), upstream, retain_graph=True)
        for one, due in zip(got, each_gradient(scale), strict=True):
            torch.testing.assert_close(one, due, rtol=tolerance, atol=tolerance / 10)
    batch = torch.tensor([1.0, 2.0], dtype=loss.dtype)
    got = torch.autograd.grad(loss, (*leaves, q), batch, is_grads_batched=True, retain_graph=True)
    for one, due in zip(got, each_gradient(2.0), strict=True):
        torch.testing.assert_close(one[1], due, rtol=tolerance, atol=tolerance / 10)
    (loss * loss).backward()
    for leaf, due in zip((*leaves, q), each_gradient(2 * loss.item()), strict=True):
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, due, rtol=tolerance, atol=tolerance / 10)


def test_nothing_of_the_linear_form_outlives_its_backward_pass() -> None:
    hidden = torch.randn(6, 4)
    leaf = hidden.clone().requires_grad_()
    states, target = leaf * 2, TopK(torch.zeros(6, 1, dtype=torch.int64), probs=torch.ones(6, 1))
    loss, kept = unixent.linear_cross_entropy(states, torch.randn(9, 4), target), weakref.ref(states)
    del states
    assert kept() is not None
    loss.backward()
    gc.collect()
    assert kept() is None
    assert loss.isfinite()


def test_the_linear_form_multiplies_three_times() -> None:
    """Logits, and two products with their gradient: what is formed in the forward pass is not formed again."""

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += "mm" in function.__name__
            return function(*args, **(kwargs or {}))

    hidden, classifier = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    target = TopK(torch.randint(9, (6, 3)), probs=torch.rand(6, 3) / 3, tail="bucket")
    with Products() as products:
        unixent.linear_cross_entropy(hidden, classifier, target, chunk=6).backward()
    assert products.count == 3


def test_modules_take_them() -> None:
    target = TopK(IDS, probs=Q, tail="bucket")
    close(CrossEntropyLoss(ignore_index=-100)(X, target, mask=MASK), unixent.cross_entropy(X, target, mask=MASK))
    module = LinearCrossEntropyLoss(4, 7, dtype=torch.float64)
    hidden = torch.randn(5, 4, dtype=torch.float64)
    close(module(hidden, target), unixent.cross_entropy(module.linear(hidden), target))


def test_numpy_arrays_may_stand_beside_tensors() -> None:
    mixed = TopK(IDS.numpy(), probs=Q, tail="bucket")
    close(unixent.cross_entropy(X, mixed), unixent.cross_entropy(X, TopK(IDS, probs=Q, tail="bucket")))
    assert isinstance(unixent.cross_entropy(X.numpy(), mixed), Tensor)
    np.testing.assert_allclose(
        unixent.entropy_of(mixed).numpy(), unixent.entropy_of(TopK(IDS.numpy(), probs=Q.numpy(), tail="bucket"))
    )
    entropy = unixent.entropy_of(Q.bfloat16())
    assert (entropy.dtype, entropy.shape) == (torch.bfloat16, (5,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_positions_have_the_dtype_that_is_accumulated_in(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns: list[Any] = []

    def spy(*operands: Any) -> Any:
        columns.append(operands[2])
        return row_statistics(*operands)

    row_statistics = native.row_statistics
    monkeypatch.setattr(native, "row_statistics", spy)
    for options in ({}, {"mask": MASK}):
        unixent.cross_entropy(X.to(dtype), TopK(IDS, probs=Q.to(dtype)), **options)
    assert [each.position_weight.dtype for each in columns] == [dtype, dtype]


def test_columns_of_another_dtype_are_converted_before_their_bytes_are_read() -> None:
    spec = StatsSpec(KernelSpec(torch.float64, 0.0, 0.0, LogitTransform(), True), ("logsumexp",), 0)
    columns = Columns(None, None, None, torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float32))
    done = kernel.row_statistics(X, columns, spec).outputs["logsumexp"]
    close(done, X.logsumexp(-1) * columns.position_weight)
