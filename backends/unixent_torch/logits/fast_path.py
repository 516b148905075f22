"""Plain losses on the host straight to the native kernel: a small one takes less time than the checks of its call."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from unixent.logit_transform import LogitTransform
from unixent.options import LossOptions
from unixent_native import DTYPES, NUMBERS_PER_THREAD, Strided, load, row_losses
from unixent_torch import compat
from unixent_torch.kernel import KernelSpec
from unixent_torch.kernel.blocks import on_huge_pages
from unixent_torch.kernel.native import have_memory, num_threads
from unixent_torch.logits.autograd import gradients, is_transformed
from unixent_torch.logits.reduction import LossSpec

Array = np.ndarray[Any, Any]
_IDENTITY = LogitTransform()


class _Number(NamedTuple):
    """A dtype: the native kernel's code, what holds one number in memory, NumPy's name, and the largest number."""

    code: int
    of: Any
    dtype: np.dtype[Any]
    largest: float


_NUMBERS = {
    torch.float32: _Number(DTYPES["float32"], ctypes.c_float, np.dtype("f4"), torch.finfo(torch.float32).max),
    torch.float64: _Number(DTYPES["float64"], ctypes.c_double, np.dtype("f8"), torch.finfo(torch.float64).max),
}


def try_fast_cross_entropy(x: Any, target: Any, options: LossOptions) -> Tensor | None:
    """The loss where it is plain and nothing is wrong with the call; None where it has to be checked."""
    if (
        torch.compiler.is_dynamo_compiling()
        or (library := load()) is None
        or compat.is_jit_tracing()
        or not compat.complete
        or compat.num_dispatch_modes()
        or compat.transforms_active()
        or not (isinstance(x, Tensor) and type(target) is Tensor and have_memory(x, target))
        or x.is_nested
        or target.is_nested
        or x.dtype not in _NUMBERS
        or target.dtype != torch.int64
        or not (x.is_contiguous() and target.is_contiguous())
        or not x.ndim
        or x.shape[:-1] != target.shape
        or not (options.axis == -1 or options.axis == x.ndim - 1)
        or 0 <= options.ignore_index < x.shape[-1]
        or options.reduction == "none"
        or options.label_smoothing
        or options.z_loss
        or options.softcap is not None
        or options.scale != 1
        or options.temperature != 1
        or options.dtype is not None
        or compat.in_forward_mode()
    ):
        return None
    differentiated = x.requires_grad and torch.is_grad_enabled()
    if differentiated and compat.saved_tensors_hooks() is not None:
        return None  # what is saved below does not go through save_for_backward
    logits, indices = x.resolve_neg(), target.resolve_neg()  # held by name: what goes in is addresses
    count, classes, index = target.numel(), x.shape[-1], indices.data_ptr()
    if not count or not library.in_range(index, count, classes):
        return None
    denominator = count if options.reduction == "mean" else 1
    code, number, dtype, largest = _NUMBERS[x.dtype]
    size = dtype.itemsize
    strides = (classes * size, size)
    grad = on_huge_pages(torch.empty_like(logits)) if differentiated else None
    scale, losses = number(1 / denominator), bytearray(count * size)
    at_losses = ctypes.addressof(number.from_buffer(losses))
    row_losses(
        library,
        (count, classes),
        Strided(logits.data_ptr(), code, strides),
        index,
        None,
        0,
        0,
        ctypes.addressof(scale),
        0,
        at_losses,
        None if grad is None else Strided(grad.data_ptr(), code, strides),
        None,
        code,
        0.0,
        0.0,
        _IDENTITY,
        # Asking for the cores takes a microsecond, and a small call has one thread in any case.
        num_threads() if count * classes >= 2 * NUMBERS_PER_THREAD else 1,
    )
    mean = library.sum(at_losses, count, code) / denominator
    if not mean <= largest:
        return None
    value = np.array(mean, dtype)
    if grad is None:
        return torch.from_numpy(value)
    loss: Tensor = _record(x, value, (grad, x, target, (x._version, target._version), denominator))
    return loss


class FastLoss(Function):
    """A small loss under plain reverse mode, with the gradient that was formed along with it.

    What `save_for_backward` is for, telling of logits that were changed meanwhile and letting go of memory, is done by
    hand: it would take as long as the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Array, saved: tuple[Any, ...]) -> Tensor:
        ctx.saved = saved
        return torch.from_numpy(value)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        if ctx.saved is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time: use retain_graph=True the first time"
            )
        grad, x, target, versions, denominator = ctx.saved
        if torch.is_grad_enabled() or is_transformed(grad_output):
            if (x._version, target._version) != versions:
                raise RuntimeError("logits or target of unixent.cross_entropy were modified by an inplace operation")
            spec = LossSpec(KernelSpec(x.dtype, 0.0, 0.0, _IDENTITY, True), 0, 0.0)
            operands = (x, target, None, None)
            (grad,) = gradients(operands, grad_output, float(denominator), spec, ("logits",))
            return grad, None, None
        scale = grad_output.item()
        if compat.keeps_graph():
            return grad * scale, None, None
        ctx.saved = None
        return grad if scale == 1 else grad.mul_(scale), None, None


_record = compat.fast_function(FastLoss)
