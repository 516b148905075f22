"""The eager kernel: bits, layouts, memory, precision beside the stock loss, refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import unixent
from unixent_torch.kernel import blocks


def problem(rows: int, classes: int, dtype: torch.dtype = torch.float32, scale: float = 6.0) -> Any:
    source = torch.Generator().manual_seed(rows + classes)
    x = (scale * torch.randn(rows, classes, generator=source)).to(dtype)
    return x, torch.randint(classes, (rows,), generator=source)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}, {"softcap": 5.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 7, 1000, 70001])
def test_a_position_has_the_same_bits_alone_and_in_any_block(
    classes: int, dtype: torch.dtype, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = problem(9, classes, dtype)
    x[2] += 300  # rows that need a shift, beside others that don't
    x[4] -= 300
    x[5, y[5]] = 100
    together = unixent.value_and_grad(x, y, reduction="none", **options)
    for elements in (classes, 2 * classes, 5 * classes):
        monkeypatch.setattr(blocks, "_HOST_ELEMENTS", elements)
        for got, due in zip(unixent.value_and_grad(x, y, reduction="none", **options), together, strict=True):
            assert torch.equal(got, due)
    for row in range(9):
        alone = unixent.value_and_grad(x[row], y[row], reduction="none", **options)
        assert torch.equal(alone[0], together[0][row])
        assert torch.equal(alone[1], together[1][row])
    backwards = unixent.value_and_grad(x.flip(0), y.flip(0), reduction="none", **options)
    assert torch.equal(backwards[1].flip(0), together[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_does_not_change_bits(threads: int) -> None:
    x, y = problem(3, 200001)
    before = torch.get_num_threads()
    due = unixent.value_and_grad(x, y, reduction="none")
    try:
        torch.set_num_threads(threads)
        loss, gradient = unixent.value_and_grad(x, y, reduction="none")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(loss, due[0])
    assert torch.equal(gradient, due[1])


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same values of shape (2, 6, 4, 5), laid out in every way."""
    wide = torch.zeros(4, 12, 8, 5)
    wide[::2, ::2, ::2] = x
    return {
        "contiguous": x.contiguous(),
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        "every second": wide[::2, ::2, ::2],
        "broadcast": x[:1].expand(2, -1, -1, -1),
    }


@pytest.mark.parametrize("name", layouts(torch.zeros(2, 6, 4, 5)))
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_every_layout_gives_the_bits_of_contiguous_rows(axis: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = layouts(torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0)))[name].requires_grad_()
    y = torch.randint(x.shape[axis], x.movedim(axis, -1).shape[:-1], generator=torch.Generator().manual_seed(1))
    rows = x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])
    due = unixent.value_and_grad(rows, y.reshape(-1), reduction="none")
    for elements in (1 << 20, 3 * x.shape[axis]):  # in one block, and in many
        monkeypatch.setattr(blocks, "_HOST_ELEMENTS", elements)
        loss = unixent.cross_entropy(x, y, axis=axis, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert torch.equal(loss.reshape(-1), due[0])
        assert torch.equal(gradient.movedim(axis, -1).reshape(rows.shape), due[1])
        loss, gradient = unixent.value_and_grad(x, y, axis=axis)
        if name != "broadcast":  # which has no layout that a gradient could have
            assert gradient.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(loss, due[0].mean())


def peak_of(call: Any) -> int:
    """Bytes that a call holds at its peak beyond what was there before, by torch's own account."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_stays_near_that_of_the_gradient(dtype: torch.dtype) -> None:
    x, y = problem(1024, 16000, dtype, scale=1.0)
    size = x.numel() * x.element_size()
    x.requires_grad_()
    assert peak_of(lambda: unixent.cross_entropy(x, y).backward()) < 1.15 * size
    assert x.grad is not None
    x.grad = None
    assert peak_of(lambda: (unixent.cross_entropy(x, y) / 3).backward()) < 1.15 * size * (4 / x.element_size())
    x.grad = None
    # No gradient is formed for a loss per position: each has an upstream of its own.
    loss = []
    assert peak_of(lambda: loss.append(unixent.cross_entropy(x, y, reduction="none"))) < 0.2 * size
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            assert peak_of(lambda: unixent.cross_entropy(x, y)) < 0.2 * size


def test_the_stock_loss_loses_what_this_one_keeps() -> None:
    gaps = torch.tensor([5.0, 10.0, 16.0, 20.0, 60.0, 80.0])
    x = torch.stack([gaps, torch.zeros(6)], 1)
    y = torch.zeros(6, dtype=torch.int64)
    truth = np.log1p(np.exp(-gaps.double().numpy()))
    loss, gradient = unixent.value_and_grad(x, y, reduction="none")
    stock = torch.nn.functional.cross_entropy(x, y, reduction="none")

    def error(values: torch.Tensor) -> Any:
        return np.abs(values.double().numpy() - truth) / truth

    assert error(loss).max() < 10 * 2**-24
    probability = torch.from_numpy(truth).neg().expm1().neg()  # of the other class: 1 - exp(-loss)
    torch.testing.assert_close(gradient[:, 1].double(), probability, rtol=18 * 2**-24, atol=0)
    torch.testing.assert_close(gradient[:, 0], -gradient[:, 1], rtol=18 * 2**-24, atol=0)
    assert error(stock).max() == 1  # all digits are gone


def test_large_sums_of_half_precision_are_exact() -> None:
    x = torch.zeros(100_000, 8, dtype=torch.float16)
    y = torch.zeros(100_000, dtype=torch.int64)
    assert abs(unixent.cross_entropy(x, y, dtype="float32").item() - math.log(8)) < 1e-6
    assert unixent.loss_terms(x, y).denominator.item() == 100_000


@pytest.mark.parametrize("name", ["weight", "mask", "normalizer"])
def test_constants_that_require_grad_are_refused(name: str) -> None:
    x, y = problem(4, 3)
    value = {"weight": torch.ones(3), "mask": torch.ones(4), "normalizer": torch.tensor(4.0)}[name].requires_grad_()
    with pytest.raises(unixent.OptionError, match=name):
        unixent.cross_entropy(x, y, **{name: value})
    with torch.no_grad():  # nothing is asked for
        unixent.cross_entropy(x, y, **{name: value})


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
def test_every_integer_dtype_of_target_is_taken(dtype: torch.dtype) -> None:
    x, y = problem(4, 5)
    assert torch.equal(unixent.cross_entropy(x, y.to(dtype)), unixent.cross_entropy(x, y))
    with pytest.raises(unixent.TargetRangeError, match=r"got 5 at position \(2,\)"):
        unixent.cross_entropy(x, torch.tensor([0, 1, 5, 9]).to(dtype))


def test_a_huge_unsigned_index_is_named() -> None:
    x, _ = problem(2, 5)
    y = torch.from_numpy(np.array([0, 2**64 - 100], np.uint64))
    with pytest.raises(unixent.TargetRangeError, match=rf"got {2**64 - 100} at position \(1,\)"):
        unixent.cross_entropy(x, y)
    losses = unixent.cross_entropy(x, y, reduction="none", validate="off")
    assert losses.isnan().tolist() == [False, True]


def test_numpy_arrays_are_taken_beside_tensors() -> None:
    x, y = problem(4, 5)
    due = unixent.cross_entropy(x, y, weight=torch.arange(5.0), mask=torch.tensor([1, 0, 1, 1]))
    assert torch.equal(unixent.cross_entropy(x, y.numpy(), weight=np.arange(5.0), mask=[1, 0, 1, 1]), due)
    handed = unixent.cross_entropy(x.numpy()[::-1], y.numpy()[::-1], backend="torch", reduction="sum")
    assert isinstance(handed, torch.Tensor)
    torch.testing.assert_close(handed, unixent.cross_entropy(x, y, reduction="sum"))


def test_parameters_are_taken_as_logits() -> None:
    x, y = problem(4, 5)
    parameter = torch.nn.Parameter(x)
    unixent.cross_entropy(parameter, y).backward()
    assert torch.equal(parameter.grad, unixent.value_and_grad(x, y)[1])
