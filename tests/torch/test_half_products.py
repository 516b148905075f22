"""The fused linear form with products of half operands, as on a GPU; the host widens what a GPU accumulates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import unixent
import unixent_conformance
from unixent_torch.linear import products

N, C, D = 40, 70, 24


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that products were asked of."""
    asked: list[torch.dtype] = []

    def mm(a: Tensor, b: Tensor, out: Tensor) -> None:
        assert a.dtype == b.dtype
        assert out.dtype is torch.float32
        asked.append(a.dtype)
        torch.mm(a.float(), b.float(), out=out)

    def add_mm(a: Tensor, b: Tensor, out: Tensor) -> None:
        product = torch.empty_like(out)
        mm(a, b, product)
        out.add_(product)

    monkeypatch.setattr(products, "HALF_DEVICES", ["cpu"])
    monkeypatch.setattr(products, "mm", mm)
    monkeypatch.setattr(products, "add_mm", add_mm)
    return asked


def example(dtype: torch.dtype, bias: bool = True) -> tuple[dict[str, Any], Tensor]:
    torch.manual_seed(0)
    hidden, classifier = torch.randn(N, D, dtype=dtype), torch.randn(C, D, dtype=dtype)
    operands = {"hidden": hidden, "classifier": classifier, "bias": torch.randn(C, dtype=dtype) if bias else None}
    target = torch.randint(C, (N,))
    target[5] = -100
    hidden[5] = torch.nan
    return operands, target


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"], indirect=True)
def test_torchs_precision_of_float32_products_is_that_of_the_gradient(
    precision: str, dtype: torch.dtype, chunk: int | None, rounded: list[torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    operands, target = example(dtype)
    wrt = ("hidden", "classifier", "bias")

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        return unixent.linear_value_and_grad(**operands, target=target, chunk=chunk, wrt=wrt)

    loss, grads = call()
    terms = {"highest": 3, "high": 2, "medium": 1}[precision] - (dtype is torch.float16 and precision != "medium")
    chunks = 1 if chunk is None else 6
    assert rounded == [dtype] * chunks * (1 + 2 * terms)
    monkeypatch.setattr(products, "HALF_DEVICES", [])
    due, due_grads = call()
    torch.testing.assert_close(loss, due)
    eps = torch.finfo(dtype).eps
    for name, grad, due_grad in zip(wrt, grads, due_grads, strict=True):
        assert not due_grad.isnan().any()
        distance = (grad.double() - due_grad.double()).abs()
        scale = due_grad.double().abs()
        # One rounding of each result, and, with one term, that of what it is a sum of.
        assert (distance <= eps * scale + (2 * eps if terms == 1 else 2.0**-14) * scale.max()).all(), name


def test_what_float16_would_lose_of_a_small_gradient_is_scaled(rounded: list[torch.dtype]) -> None:
    """A mean over many positions has gradients below 2^-24, the smallest float16."""
    operands, target = example(torch.float16, bias=False)
    target = target.clamp(min=0)
    operands["hidden"] = torch.randn(N, D, dtype=torch.float16)
    normalizer = 2.0**20
    _, (got, _) = unixent.linear_value_and_grad(**operands, target=target, normalizer=normalizer)
    wide = {name: value if value is None else value.double() for name, value in operands.items()}
    _, (due, _) = unixent.linear_value_and_grad(**wide, target=target, normalizer=normalizer)
    assert (got.double() - due).abs().max() <= 2.0**-24


def test_a_row_of_nan_leaves_the_scale_of_the_others(rounded: list[torch.dtype]) -> None:
    operands, target = example(torch.float16)
    target[5] = 3
    for reduction in ("sum", "none"):
        leaves = {name: value.clone().requires_grad_() for name, value in operands.items()}
        loss = unixent.linear_cross_entropy(**leaves, target=target, reduction=reduction)
        (loss[torch.arange(N) != 5].sum() if loss.ndim else loss).backward()
        grad = leaves["hidden"].grad
        assert grad is not None
        assert grad[torch.arange(N) != 5].isfinite().all()


def test_autocast_rounds_operands_and_multiplies_them_so(rounded: list[torch.dtype]) -> None:
    operands, target = example(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = unixent.linear_cross_entropy(**operands, target=target)
    assert set(rounded) == {torch.bfloat16}
    half = {name: value.bfloat16() for name, value in operands.items()}
    half["bias"] = operands["bias"]
    assert got.dtype is torch.float32
    logits = half["hidden"].float() @ half["classifier"].float().t() + operands["bias"]
    torch.testing.assert_close(got, unixent.cross_entropy(logits, target))


def test_other_dtypes_are_widened(rounded: list[torch.dtype]) -> None:
    operands, target = example(torch.float32)
    unixent.linear_cross_entropy(**operands, target=target)
    operands["hidden"] = operands["hidden"].bfloat16()
    unixent.linear_cross_entropy(**operands, target=target)
    assert not rounded


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_catalogue_matches(dtype: str, rounded: list[torch.dtype]) -> None:
    features = ("fused linear", "fused linear statistics", "fused linear sparse targets")
    report = unixent_conformance.run("torch", features=features, dtypes=[dtype], modes=["eager", "autograd"])
    assert report.ok, [(case.id, case.detail) for case in report.failures]
    assert len(rounded) > 100


@pytest.mark.parametrize("precision", ["medium"], indirect=True)
def test_one_term_of_bfloat16_would_break_the_bounds(precision: str, rounded: list[torch.dtype]) -> None:
    """So it is for who asks for it: gradients that cancel are off by more than a hundred times their bound."""
    report = unixent_conformance.run("torch", features=["fused linear"], dtypes=["bfloat16"], modes=["eager"])
    assert max(case.units for case in report.cases) > 100
    assert all("gradients" in case.id for case in report.failures)


def test_torch_has_the_products_that_a_gpu_is_asked() -> None:
    """Only the device is missing: the names and the arguments are those of torch."""
    a, b, out = torch.ones(4, 4).half(), torch.ones(4, 4).half(), torch.zeros(4, 4)
    with pytest.raises(NotImplementedError, match=r"mm.dtype_out"):
        products.mm(a, b, out)
    with pytest.raises(NotImplementedError, match=r"mm.dtype"):
        products.add_mm(a, b, out)
