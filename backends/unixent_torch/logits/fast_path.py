"""Small plain losses on the host, where a call costs more than its arithmetic: straight through, mostly in NumPy.

With the native kernel, it does the arithmetic, as everywhere. Without it, an operator of NumPy takes a fraction of the
time of one of torch's, and stands in wherever IEEE 754 leaves no choice (sums of two, products, quotients), so that a
gradient has the bits that `kernel.rows.unshifted_index_rows` gives it: exp and the sum of a row stay torch's. log1p is
NumPy's, since only the sum of the losses is seen.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from unixent.options import LossOptions
from unixent_native import load
from unixent_torch import compat
from unixent_torch.kernel import KernelSpec, native
from unixent_torch.kernel.rows import MIN_EXP
from unixent_torch.logits.autograd import gradients, is_transformed
from unixent_torch.logits.reduction import LossSpec

# Beyond these many logits torch's threads are worth more than cheap calls.
_MAX_ELEMENTS = 1 << 14
_SPECS = {dtype: KernelSpec(dtype, 0.0, 0.0, None, True) for dtype in (torch.float32, torch.float64)}

Array = np.ndarray[Any, Any]


def try_fast_cross_entropy(x: Any, target: Any, options: LossOptions) -> Tensor | None:
    """The loss where it is small and plain and nothing is wrong with the call; None where it has to be checked."""
    if (
        torch.compiler.is_dynamo_compiling()
        or compat.is_jit_tracing()
        or not compat.complete
        or compat.num_dispatch_modes()
        or compat.transforms_active()
        or not (type(x) is Tensor or type(x) is Parameter)
        or type(target) is not Tensor
        or not (x.layout is target.layout is torch.strided)
        or x.is_nested
        or target.is_nested
        or target.is_neg()
        or x.dtype not in _SPECS
        or target.dtype != torch.int64
        or not (x.is_cpu and target.is_cpu and x.is_contiguous())
        or x.numel() > _MAX_ELEMENTS
        or x.shape[:-1] != target.shape
        or not (options.axis == -1 or options.axis == x.ndim - 1)
        or options.reduction == "none"
        or options.label_smoothing
        or options.z_loss
        or options.softcap is not None
        or options.dtype is not None
        or compat.in_forward_mode()
    ):
        return None
    differentiated = x.requires_grad and torch.is_grad_enabled()
    if differentiated and compat.saved_tensors_hooks() is not None:
        return None  # what is saved below does not go through save_for_backward
    index = target.numpy().reshape(-1)
    count = len(index)
    if count < 2:  # the value of one position is its loss, whose bits are seen
        return None
    classes = x.shape[-1]
    # argmin and argmax are called in a fraction of the time of min and max, here and below.
    if index.item(index.argmin()) < 0 or index.item(index.argmax()) >= classes or 0 <= options.ignore_index < classes:
        return None
    denominator = count if options.reduction == "mean" else 1
    library, scale = load(), 1 / denominator
    if library is not None:
        wrt = ("logits",) if differentiated else ()
        solved = native.row_losses(library, x, target, None, None, scale, _SPECS[x.dtype], wrt)
        if solved is None:
            return None
        value, block = solved[0].sum().div_(denominator).numpy(), (*solved[1], None)[0]
        if not math.isfinite(value.item()):
            return None
    else:
        block = torch.exp(x.detach())
        losses = _row_losses(block, index, scale if differentiated else None)
        if losses is None:
            return None
        value = np.empty((), losses.dtype)
        np.add.reduce(losses, out=value)
        value /= denominator
    if not differentiated:
        return torch.from_numpy(value)
    loss: Tensor = _record(x, value, (block, x, target, (x._version, target._version), denominator))
    return loss


@lru_cache(maxsize=256)
def _row_starts(rows: int, classes: int) -> Array:
    """Where each row starts in a flat block."""
    starts = np.arange(0, rows * classes, classes)
    starts.flags.writeable = False
    return starts


def _row_losses(block: Tensor, index: Array, grad_scale: float | None) -> Array | None:
    """The losses of rows whose exponentials ``block`` holds; with a ``grad_scale`` they become the gradient.

    None where a row may have to be shifted, or NumPy would warn: within these bounds all that follows is far from the
    ends of float32, and no row is one of `kernel.rows._rows_to_shift`.
    """
    rows = block if block.ndim == 2 else block.view(len(index), -1)
    exps = rows.numpy()
    flat, pivots = exps.reshape(-1), _row_starts(*exps.shape) + index
    pivot_exp = flat[pivots]
    flat[pivots] = 0
    sum_rest = rows.sum(1).numpy()
    total = sum_rest + pivot_exp
    # argmin and argmax stop at a NaN.
    if not (
        sum_rest.item(sum_rest.argmin()) >= 1e-10
        and pivot_exp.item(pivot_exp.argmin()) >= 1e-12
        and total.item(total.argmax()) <= 1e15
    ):
        return None
    if not total.item(total.argmin()) >= 1:
        flat[pivots] = 1
        if flat.item(flat.argmin()) < MIN_EXP:
            return None
    if grad_scale is not None:
        flat[pivots] = -sum_rest
        nll_grad = 1 / total
        nll_grad *= grad_scale
        exps *= nll_grad[:, None]
    sum_rest /= pivot_exp
    losses: Array = np.log1p(sum_rest, out=sum_rest)
    return losses


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
            spec = LossSpec(_SPECS[x.dtype], 0, 0.0)
            operands = (x, target, None, None)
            (grad,) = gradients(operands, grad_output, float(denominator), spec, ("logits",))
            return grad, None, None
        scale = grad_output.item()
        if compat.keeps_graph():
            return grad * scale, None, None
        ctx.saved = None
        return grad if scale == 1 else grad.mul_(scale), None, None


_record = compat.fast_function(FastLoss)
