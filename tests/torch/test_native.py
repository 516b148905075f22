"""The native kernel: what it takes of torch's tensors, and that torch's operators serve the rest to the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import unixent
import unixent_native
from unixent.logit_transform import LogitTransform
from unixent_torch import kernel
from unixent_torch.collectives import LocalShard
from unixent_torch.kernel import KernelSpec, composed, native
from unixent_torch.vocab_parallel import gradients, statistics
from unixent_torch.vocab_parallel import native as split_native
from unixent_torch.vocab_parallel.blocks import LocalLogits

SPEC = KernelSpec(torch.float32, 0.0, 0.0, LogitTransform(), True)


def specs_in(acc_dtype):
    """The plain loss, and one with everything."""
    plain = KernelSpec(acc_dtype, 0.0, 0.0, LogitTransform(), True)
    return plain, KernelSpec(acc_dtype, 0.1, 1e-3, LogitTransform(5.0, 0.75), True)


@pytest.fixture
def library() -> Any:
    loaded = unixent_native.load()
    if loaded is None:
        pytest.skip("the native kernel is not built, or switched off by UNIXENT_NATIVE=0")
    return loaded


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_it_computes_what_operators_do(
    library: Any, dtype: torch.dtype, probabilities: bool, transposed: bool, weighted: bool
) -> None:
    acc_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    x = (4 * torch.randn(3, 50, 7)).to(dtype).movedim(1, -1) if transposed else (4 * torch.randn(3, 7, 50)).to(dtype)
    target = torch.softmax(torch.randn(3, 7, 50), -1).to(dtype) if probabilities else torch.randint(50, (7, 3)).t()
    weight = position_weight = None
    if weighted:
        weight, position_weight = torch.rand(50, dtype=acc_dtype), torch.rand(7, 3, dtype=acc_dtype).t()
        position_weight[0, 1] = 0
    wrt = ("logits", "target") if probabilities else ("logits",)
    scales = (None, 0.25, torch.tensor(0.5, dtype=acc_dtype), torch.rand(3, 1, dtype=acc_dtype))
    specs = specs_in(acc_dtype)
    for scale, spec in zip(scales, 2 * specs, strict=True):
        call = (x, target, weight, position_weight, scale, spec, wrt)
        done = native.row_losses(library, *call)
        assert done is not None
        due = composed.row_losses(*call)
        assert done[0].dtype is acc_dtype
        torch.testing.assert_close(done, due, rtol=1e-5 if acc_dtype is dtype else 1e-2, atol=1e-6)
        for got, like in zip(done[1], (x, target), strict=False):
            assert got.stride() == like.stride()


def test_a_gradient_takes_the_place_of_the_logits(library: Any) -> None:
    x, target = torch.randn(5, 9), torch.randint(9, (5,))
    due = native.row_losses(library, x, target, None, None, None, SPEC, ("logits",))
    done = native.row_losses(library, x, target, None, None, None, SPEC, ("logits",), (x,))
    assert done is not None
    assert due is not None
    assert done[1][0] is x
    assert torch.equal(x, due[1][0])


def replaced(position: int, change: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda call: [*call[:position], change(call[position]), *call[position + 1 :]]


class Subclass(torch.Tensor):
    pass


def negative(x: torch.Tensor) -> torch.Tensor:
    return torch._neg_view(-x)


def left_behind(x: torch.Tensor) -> torch.Tensor:
    """``x`` as a transform saw it that is over."""
    seen: list[torch.Tensor] = []

    def keep(factor: torch.Tensor) -> torch.Tensor:
        seen.append((x * factor).to(x.dtype))
        return factor

    torch.func.grad(keep)(torch.ones(()))
    return seen[0]


@pytest.mark.parametrize("position", range(5), ids=["logits", "target", "weight", "position weight", "scale"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.as_subclass(Subclass),
        lambda x: x.to("meta"),
        lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
        left_behind,
    ],
    ids=["subclass", "meta", "zero", "left behind"],
)
def test_operators_serve_tensors_without_plain_memory(library: Any, position: int, change: Any) -> None:
    call = [torch.randn(5, 9), torch.randint(9, (5,)), torch.ones(9), torch.ones(5), torch.ones(5)]
    assert native.row_losses(library, *call, SPEC) is not None
    assert native.row_losses(library, *replaced(position, change)(call), SPEC) is None


@pytest.mark.parametrize("position", range(5), ids=["logits", "target", "weight", "position weight", "scale"])
def test_negative_views_give_the_bits_of_the_numbers_they_stand_for(library: Any, position: int) -> None:
    call = [torch.randn(5, 9), torch.randint(9, (5,)), torch.rand(9), torch.rand(5), torch.rand(5)]
    due = native.row_losses(library, *call, SPEC, ("logits",))
    done = native.row_losses(library, *replaced(position, negative)(call), SPEC, ("logits",))
    torch.testing.assert_close(done, due, rtol=0, atol=0)


@pytest.mark.parametrize("target", [torch.randint(3, (2,) * 12), torch.rand(*(2,) * 12, 3)], ids=["indices", "both"])
def test_positions_along_many_axes_in_any_order_keep_their_bits(library: Any, target: torch.Tensor) -> None:
    x, wrt = torch.randn(*(2,) * 12, 3), ("logits", "target") if target.is_floating_point() else ("logits",)
    due = native.row_losses(library, x, target, None, None, None, SPEC, wrt)
    order = [*torch.randperm(12).tolist(), 12]
    shuffled = x.permute(order).contiguous().permute(torch.tensor(order).argsort().tolist())
    torch.testing.assert_close(
        native.row_losses(library, shuffled, target, None, None, None, SPEC, wrt), due, rtol=0, atol=0
    )


def test_operators_serve_what_is_traced_or_transformed(library: Any) -> None:
    x, target, taken = torch.randn(5, 9), torch.randint(9, (5,)), []

    def solve(x: torch.Tensor) -> torch.Tensor:
        taken.append(native.row_losses(library, x, target, None, None, None, SPEC) is not None)
        return x.sum()

    solve(x)
    torch.func.grad(solve)(x)
    torch.func.vmap(solve)(x.expand(2, 5, 9))
    torch.jit.trace(solve, x, check_trace=False)
    with torch._subclasses.FakeTensorMode():
        solve(torch.zeros(5, 9))
    assert taken == [True, False, False, False, False]


def test_everyday_calls_take_it(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("torch's operators were called")

    monkeypatch.setattr(kernel.composed, "row_losses", refuse)
    x, target = torch.randn(300, 90, requires_grad=True), torch.randint(90, (300,))
    for options in ({}, {"mask": target > 3, "weight": torch.ones(90)}, {"reduction": "none", "softcap": 3.0}):
        unixent.cross_entropy(x, target, **options).sum().backward()
        unixent.value_and_grad(x.detach().bfloat16(), target, **options)
        with torch.inference_mode():
            unixent.cross_entropy(x, target, **options)
    hidden, classifier = torch.randn(300, 8, requires_grad=True), torch.randn(90, 8, requires_grad=True)
    unixent.linear_cross_entropy(hidden, classifier, target, chunk=100).backward()
    images = torch.randn(2, 9, 8, 8, requires_grad=True)
    unixent.cross_entropy(images, torch.randint(9, (2, 8, 8)), axis=1).backward()


@pytest.mark.parametrize("rows", [5, 3000])
def test_logits_that_a_transform_left_behind_have_their_loss(rows: int) -> None:
    x, target = torch.randn(rows, 9), torch.randint(9, (rows,))
    torch.testing.assert_close(unixent.cross_entropy(left_behind(x), target).detach(), unixent.cross_entropy(x, target))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["indices", "probabilities"])
def test_split_losses_take_it_for_both_halves(
    library: Any, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, probabilities: bool
) -> None:
    acc_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    x = (4 * torch.randn(3, 7, 50)).to(dtype)
    target = torch.softmax(torch.randn(3, 7, 50), -1).to(dtype) if probabilities else torch.randint(90, (3, 7))
    wrt = ("logits", "target") if probabilities else ("logits",)
    weight, position_weight = torch.rand(90, dtype=acc_dtype), torch.rand(3, 7, dtype=acc_dtype)
    position_weight[0, 1] = 0
    shard = LocalShard((), (), 20, 90, 50)

    def solve(spec: KernelSpec) -> Any:
        losses, stats = statistics.shard_losses(x, target, weight, position_weight, spec, shard)
        call = (x, target, weight, position_weight, torch.rand(3, 1, dtype=acc_dtype).fill_(0.5), stats, spec, shard)
        return losses, gradients.shard_gradients(*call, wrt)

    def refuse(*_: Any) -> Any:
        raise AssertionError("torch's operators were called")

    for spec in specs_in(acc_dtype):
        with monkeypatch.context() as patch:
            patch.setattr(LocalLogits, "pieces", refuse)
            done = solve(spec)
        with monkeypatch.context() as patch:
            patch.setattr(split_native, "load", lambda: None)
            due = solve(spec)
        torch.testing.assert_close(done, due, rtol=1e-5 if acc_dtype is dtype else 1e-2, atol=1e-6)
