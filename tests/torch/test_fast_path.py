"""Plain losses take a path of their own to the native kernel: the bits of the general one, and all of autograd."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import unixent
import unixent_native
from unixent_torch import compat

needs_kernel = pytest.mark.skipif(
    unixent_native.load() is None, reason="without the native kernel every loss takes the general path"
)


def problem(rows: int = 32, classes: int = 100, dtype: torch.dtype = torch.float32) -> Any:
    source = torch.Generator().manual_seed(rows + classes)
    x = (4 * torch.randn(rows, classes, generator=source, dtype=torch.float64)).to(dtype)
    return x.requires_grad_(), torch.randint(classes, (rows,), generator=source)


def gradient(loss: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, x)[0]


def expected_fast_path(loss: torch.Tensor) -> bool:
    """Whether the loss took the fast path exactly if there is a native kernel for it to go to."""
    return took_fast_path(loss) == (unixent_native.load() is not None)


def took_fast_path(loss: torch.Tensor) -> bool:
    return type(loss.grad_fn).__name__ == "FastLossBackward"


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(2, 3), (33, 100), (5, 3000), (163, 100)])
def test_both_paths_give_a_gradient_of_the_same_bits(
    rows: int, classes: int, dtype: torch.dtype, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = problem(rows, classes, dtype)
    loss = unixent.cross_entropy(x, y, reduction=reduction)
    assert expected_fast_path(loss)
    grad = gradient(loss, x)
    with torch.no_grad():
        assert torch.equal(unixent.cross_entropy(x, y, reduction=reduction), loss)
    with torch.inference_mode():
        assert torch.equal(unixent.cross_entropy(x.detach().clone(), y, reduction=reduction), loss)
    shaped = x.detach().view(1, rows, 1, classes).requires_grad_()
    same = unixent.cross_entropy(shaped, y.view(1, rows, 1), reduction=reduction)
    assert torch.equal(gradient(same, shaped), grad.view(shaped.shape))
    monkeypatch.setattr(compat, "complete", False)
    general = unixent.cross_entropy(x, y, reduction=reduction)
    assert not took_fast_path(general)
    assert torch.equal(gradient(general, x), grad)
    torch.testing.assert_close(loss, general, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_a_mean_of_losses_whose_sum_overflows_is_finite() -> None:
    x, y = torch.full((8, 2), 3e38), torch.zeros(8, dtype=torch.int64)
    x[:, 0] = 0
    loss = unixent.cross_entropy(x.requires_grad_(), y)
    assert expected_fast_path(loss)
    torch.testing.assert_close(loss.detach(), torch.tensor(3e38))
    assert unixent.cross_entropy(x, y, reduction="sum").isinf()


def test_one_position_has_the_bits_of_its_loss() -> None:
    x, y = problem(7, 100)
    for row, loss in enumerate(unixent.cross_entropy(x, y, reduction="none")):
        alone = unixent.cross_entropy(x[row : row + 1], y[row : row + 1])
        assert expected_fast_path(alone)
        assert torch.equal(alone, loss)


@needs_kernel
def test_a_gradient_does_not_share_memory_with_the_graph() -> None:
    x, y = problem()
    due = unixent.value_and_grad(x, y)[1]
    loss = unixent.cross_entropy(x, y)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    first.zero_()
    assert torch.equal(gradient(2 * loss, x), 2 * due)
    with pytest.raises(RuntimeError, match="second time"):
        gradient(loss, x)


def test_small_losses_have_second_derivatives() -> None:
    x, y = problem(4, 5, torch.float64)
    assert expected_fast_path(unixent.cross_entropy(x, y))
    assert torch.autograd.gradcheck(unixent.cross_entropy, (x, y))
    assert torch.autograd.gradgradcheck(lambda x: unixent.cross_entropy(x, y), (x,))
    upstream = torch.arange(3, dtype=torch.float64)
    batched = torch.autograd.grad(unixent.cross_entropy(x, y), x, upstream, is_grads_batched=True)[0]
    torch.testing.assert_close(batched[2], 2 * unixent.value_and_grad(x, y)[1])


@needs_kernel
def test_changes_after_the_call_have_no_effect_or_raise() -> None:
    x, y = problem()
    due = unixent.value_and_grad(x, y)[1]
    loss = unixent.cross_entropy(x, y)
    y.zero_()
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], due)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_saved_tensors_hooks_see_what_a_small_loss_saves() -> None:
    x, y = problem()
    packed: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda position: packed[position]):
        loss = unixent.cross_entropy(x, y)
        with torch.no_grad():
            unixent.cross_entropy(x, y)
    assert not took_fast_path(loss)
    assert any(tensor is x for tensor in packed)
    assert torch.equal(gradient(loss, x), unixent.value_and_grad(x, y)[1])


@pytest.mark.parametrize("offload", [True, False], ids=["offloaded", "checkpointed"])
def test_a_small_loss_can_be_offloaded_and_checkpointed(offload: bool) -> None:
    x, y = problem()
    if offload:
        with torch.autograd.graph.save_on_cpu():
            loss = unixent.cross_entropy(x, y)
    else:
        loss = torch.utils.checkpoint.checkpoint(unixent.cross_entropy, x, y, use_reentrant=False)
    assert not took_fast_path(loss)
    assert torch.equal(gradient(loss, x), unixent.value_and_grad(x, y)[1])


def test_logits_far_from_zero_are_right_without_warnings() -> None:
    def check(change: Any, finite: bool) -> None:
        x, y = problem()
        with torch.no_grad():
            change(x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss = unixent.cross_entropy(x, y)
        assert bool(loss.isfinite()) == finite
        if finite:
            assert expected_fast_path(loss)
            exact = unixent.cross_entropy(x, y, reduction="none").double().mean()
            torch.testing.assert_close(loss.double(), exact, rtol=4 * torch.finfo(torch.float32).eps, atol=0)
        else:
            assert not took_fast_path(loss)
        assert torch.equal(gradient(loss, x).nan_to_num(7), unixent.value_and_grad(x, y)[1].nan_to_num(7))

    def put(row: int, value: float) -> Any:
        return lambda x, y: x[row].fill_(value)

    for value in (1e4, -1e4, 88.0, -60.0):
        check(put(0, value), True)
    check(put(2, float("nan")), False)
    check(put(31, float("-inf")), False)
    check(lambda x, y: x[5, y[5] - 1].fill_(float("inf")), False)
    check(lambda x, y: x[7, y[7]].fill_(90), True)
    check(lambda x, y: x[7, y[7]].fill_(-90), True)


def test_ignored_and_out_of_range_targets_take_the_general_path() -> None:
    x, y = problem()
    y[5] = -100
    loss = unixent.cross_entropy(x, y)
    assert not took_fast_path(loss)
    kept = [row for row in range(32) if row != 5]
    torch.testing.assert_close(loss, unixent.cross_entropy(x[kept], y[kept]))
    assert not gradient(loss, x)[5].any()
    y[5] = 3
    assert expected_fast_path(unixent.cross_entropy(x, y))
    assert not took_fast_path(unixent.cross_entropy(x, y, ignore_index=3))
    y[5] = 100
    with pytest.raises(unixent.TargetRangeError, match=r"got 100 at position \(5,\)"):
        unixent.cross_entropy(x, y)
    assert unixent.cross_entropy(x, y, validate="off").isnan()


@pytest.mark.parametrize(
    "change",
    [
        {"label_smoothing": 0.1},
        {"z_loss": 0.1},
        {"softcap": 3.0},
        {"dtype": "float64"},
        {"reduction": "none"},
        {"axis": 0},
        {"weight": np.ones(32)},
        {"mask": np.ones(32)},
        {"normalizer": 3.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_options_other_than_the_defaults_take_the_general_path(change: dict[str, Any]) -> None:
    x, y = problem(32, 32)
    loss = unixent.cross_entropy(x, y, **change)
    assert not took_fast_path(loss)
    with torch.no_grad():
        other = unixent.cross_entropy(x.detach().numpy(), y.numpy(), **change)
    torch.testing.assert_close(loss.detach(), torch.as_tensor(other), rtol=1e-6, atol=0)


def test_small_losses_raise_the_same_errors_as_large_ones() -> None:
    x, y = problem(4, 5)
    with pytest.raises(unixent.ShapeError, match="logits"):
        unixent.cross_entropy(x[0, 0], y[0])
    with pytest.raises(unixent.ShapeError, match="target"):
        unixent.cross_entropy(x, y[:3])
    with pytest.raises(unixent.ShapeError, match="at least 1 class"):
        unixent.cross_entropy(x[:, :0], y)
    with pytest.raises(unixent.DTypeError, match="target"):
        unixent.cross_entropy(x, y.bool())
    with pytest.raises(unixent.OptionError, match="axis"):
        unixent.cross_entropy(x, y, axis=2)
    with pytest.raises(unixent.BackendError, match="meta"):
        unixent.cross_entropy(x, y.to("meta"))
    with pytest.raises(unixent.TargetRangeError, match="got -1"):
        unixent.cross_entropy(x, y - y - 1)


def test_the_loss_is_on_the_device_of_the_logits() -> None:
    x, y = problem()
    with torch.device("meta"):
        loss = unixent.cross_entropy(x, y)
        with torch.no_grad():
            value = unixent.cross_entropy(x, y)
    assert expected_fast_path(loss)
    assert loss.device == value.device == x.device
    assert torch.equal(loss, value)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_is_a_function_of_the_logits() -> None:
    x, y = problem()
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: unixent.cross_entropy(x, y), x.detach(), check_trace=False)
        torch.testing.assert_close(traced(2 * x.detach()), unixent.cross_entropy(2 * x.detach(), y))
