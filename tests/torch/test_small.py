"""Small problems, which take a way of their own: the bits of the others, and all that autograd may ask."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

import unixent
from unixent_torch.logits import fast_path


def problem(rows: int = 32, classes: int = 100, dtype: torch.dtype = torch.float32) -> Any:
    source = torch.Generator().manual_seed(rows + classes)
    x = (4 * torch.randn(rows, classes, generator=source, dtype=torch.float64)).to(dtype)
    return x.requires_grad_(), torch.randint(classes, (rows,), generator=source)


def gradient(loss: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, x)[0]


def is_small(loss: torch.Tensor) -> bool:
    return type(loss.grad_fn).__name__ == "SmallLossBackward"


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(2, 3), (33, 100), (5, 3000), (163, 100)])
def test_a_gradient_has_the_same_bits_on_both_ways(
    rows: int, classes: int, dtype: torch.dtype, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = problem(rows, classes, dtype)
    loss = unixent.cross_entropy(x, y, reduction=reduction)
    assert is_small(loss)
    slope = gradient(loss, x)
    with torch.no_grad():
        assert torch.equal(unixent.cross_entropy(x, y, reduction=reduction), loss)
    with torch.inference_mode():
        assert torch.equal(unixent.cross_entropy(x.detach().clone(), y, reduction=reduction), loss)
    shaped = x.detach().view(1, rows, 1, classes).requires_grad_()
    same = unixent.cross_entropy(shaped, y.view(1, rows, 1), reduction=reduction)
    assert torch.equal(gradient(same, shaped), slope.view(shaped.shape))
    monkeypatch.setattr(fast_path, "_ELEMENTS", 0)
    long = unixent.cross_entropy(x, y, reduction=reduction)
    assert not is_small(long)
    assert torch.equal(gradient(long, x), slope)
    torch.testing.assert_close(loss, long, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_a_gradient_is_no_memory_of_the_graph() -> None:
    x, y = problem()
    due = unixent.value_and_grad(x, y)[1]
    loss = unixent.cross_entropy(x, y)
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    first.zero_()
    assert torch.equal(gradient(2 * loss, x), 2 * due)
    with pytest.raises(RuntimeError, match="second time"):
        gradient(loss, x)


def test_second_derivatives() -> None:
    x, y = problem(4, 5, torch.float64)
    assert is_small(unixent.cross_entropy(x, y))
    assert torch.autograd.gradcheck(unixent.cross_entropy, (x, y))
    assert torch.autograd.gradgradcheck(lambda x: unixent.cross_entropy(x, y), (x,))
    upstream = torch.arange(3, dtype=torch.float64)
    batched = torch.autograd.grad(unixent.cross_entropy(x, y), x, upstream, is_grads_batched=True)[0]
    torch.testing.assert_close(batched[2], 2 * unixent.value_and_grad(x, y)[1])


def test_what_changes_after_the_call_changes_nothing_or_is_told() -> None:
    x, y = problem()
    due = unixent.value_and_grad(x, y)[1]
    loss = unixent.cross_entropy(x, y)
    y.zero_()
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], due)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_logits_far_from_zero_take_the_long_way_and_warn_of_nothing() -> None:
    def check(change: Any, finite: bool) -> None:
        x, y = problem()
        with torch.no_grad():
            change(x, y)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss = unixent.cross_entropy(x, y)
        assert not is_small(loss)
        assert torch.equal(loss, unixent.cross_entropy(x, y, reduction="none").mean()) or not finite
        assert bool(loss.isfinite()) == finite
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


def test_ignored_positions_and_bad_ones_do_not_come_here() -> None:
    x, y = problem()
    y[5] = -100
    loss = unixent.cross_entropy(x, y)
    assert not is_small(loss)
    kept = [row for row in range(32) if row != 5]
    torch.testing.assert_close(loss, unixent.cross_entropy(x[kept], y[kept]))
    assert not gradient(loss, x)[5].any()
    y[5] = 3
    assert is_small(unixent.cross_entropy(x, y))
    assert not is_small(unixent.cross_entropy(x, y, ignore_index=3))
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
def test_what_is_not_plain_does_not_come_here(change: dict[str, Any]) -> None:
    x, y = problem(32, 32)
    loss = unixent.cross_entropy(x, y, **change)
    assert not is_small(loss)
    with torch.no_grad():
        other = unixent.cross_entropy(x.detach().numpy(), y.numpy(), **change)
    torch.testing.assert_close(loss.detach(), torch.as_tensor(other), rtol=1e-6, atol=0)


def test_what_is_wrong_is_told_as_it_is_of_large_losses() -> None:
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


def test_the_loss_lies_where_the_logits_do() -> None:
    x, y = problem()
    with torch.device("meta"):
        loss = unixent.cross_entropy(x, y)
        with torch.no_grad():
            value = unixent.cross_entropy(x, y)
    assert is_small(loss)
    assert loss.device == value.device == x.device
    assert torch.equal(loss, value)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_trace_is_a_function_of_the_logits() -> None:
    x, y = problem()
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: unixent.cross_entropy(x, y), x.detach(), check_trace=False)
        torch.testing.assert_close(traced(2 * x.detach()), unixent.cross_entropy(2 * x.detach(), y))
