"""Kernels as people write them, for the tests of the interpreter: imported after it is enabled."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.language.extra.cuda import libdevice as cuda_libdevice
from triton.language.extra.libdevice import log1p, tanh

from unixent_conformance.harnesses.torch import TorchHarness


class Plain(TorchHarness):
    """Without the modes that trace: the interpreter is Python that no compiler follows."""

    modes = TorchHarness.modes[:2]


plain = Plain()


@triton.jit
def scalar(out, factor):
    tl.store(out, factor.to(tl.float32))
    tl.store(out + 1, factor * 3)


@triton.jit
def from_libdevice(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.store(out + at, tanh(value))
    tl.store(out + N + at, log1p(value))


@triton.jit
def from_cuda_libdevice(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at)
    tl.store(out + at, cuda_libdevice.tanh(value))
    tl.store(out + N + at, libdevice.log1p(value))


cast = tl.cast  # a name of its own, as libraries have for what older releases lack


@triton.jit
def by_another_name(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, cast(tl.load(x + at), tl.int32))


@triton.jit
def copy(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(x + at))


@triton.jit
def in_bfloat16(a, b, product, total, greater, top, N: tl.constexpr):
    rows = tl.arange(0, N)
    at = rows[:, None] * N + rows[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(product + at, tl.dot(x, y))
    tl.store(total + at, x + y)
    tl.store(greater + at, x > y)
    tl.store(top + rows, tl.max(x, 1))


@triton.jit
def convert(x, out, wide, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.load(x + at).to(tl.bfloat16)
    tl.store(out + at, value)
    tl.store(wide + at, value.to(tl.float64))


@triton.jit
def assembly(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    value = tl.inline_asm_elementwise("ex2.approx.f32 $0, $1;", "=f,f", [tl.load(x + at)], tl.float32, True, 1)
    tl.store(out + at, value)


@triton.jit
def faulty(x, N: tl.constexpr):
    tl.store(x + tl.arange(0, N), no_such_name)  # noqa: F821


@triton.jit
def cross_entropy(x, y, loss, grad, stride, C, softcap, CAPPED: tl.constexpr, LATE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < C
    value = tl.load(x + row * stride + at, mask=inside, other=float("-inf")).to(tl.float32)
    grad_scale = 1.0
    if CAPPED:
        tanh_value = tanh(value / softcap.to(tl.float32))
        value = softcap * tanh_value
        grad_scale = 1 - tanh_value * tanh_value
        if not LATE:
            value = tl.where(inside, value, float("-inf"))
    target = tl.load(y + row)
    top = tl.max(value, 0)
    exponential = tl.exp(value - top)
    total = tl.sum(exponential, 0)
    own = tl.sum(tl.where(at == target, value, 0.0), 0)
    tl.store(loss + row, tl.log(total) + (top - own))
    tl.store(grad + row * C + at, (exponential / total - (at == target)) * grad_scale, mask=inside)


class Rows(torch.autograd.Function):
    @staticmethod
    def forward(context, x, y, softcap, late):  # type: ignore[override]
        rows, classes = x.shape
        loss, grad = torch.empty(rows), torch.empty(rows, classes)
        block = triton.next_power_of_2(classes)
        with torch.cuda.device(x.device.index):
            cross_entropy[(rows,)](
                x, y, loss, grad, x.stride(0), classes, softcap or 0.0, softcap is not None, late, block
            )
        context.save_for_backward(grad)
        context.dtype = x.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, upstream):  # type: ignore[override]
        (grad,) = context.saved_tensors
        return (grad * upstream.unsqueeze(1)).to(context.dtype), None, None, None


def _loss(logits: Any, target: Any, reduction: str, softcap: float | None, late: bool) -> Any:
    if logits.ndim != 2 or not logits.numel() or logits.dtype == torch.float64 or not logits.isfinite().all():
        raise NotImplementedError("finite rows of classes, up to float32")
    if target.is_floating_point() or target.shape != logits.shape[:1]:
        raise NotImplementedError("one class index a row")
    if ((target < 0) | (target >= logits.shape[1])).any():
        raise NotImplementedError("an index out of range")
    if softcap is not None and not softcap > 0:
        raise NotImplementedError("a soft-cap that is none")
    loss = Rows.apply(logits.contiguous(), target, softcap, late)
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction].to(logits.dtype)


def right(logits: Any, target: Any, *, reduction: str = "mean", softcap: float | None = None) -> Any:
    return _loss(logits, target, reduction, softcap, late=False)


def late(logits: Any, target: Any, *, reduction: str = "mean", softcap: float | None = None) -> Any:
    """The soft-cap after the mask: padded lanes become -softcap."""
    return _loss(logits, target, reduction, softcap, late=True)
