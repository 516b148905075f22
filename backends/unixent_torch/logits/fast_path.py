"""Small plain losses on the host, where a call costs more than its arithmetic: straight through, mostly in NumPy.

An operator of NumPy takes a fraction of the time of one of torch's. It stands in wherever IEEE 754 leaves no choice
(sums of two, products, quotients), so that a gradient has the bits that `_rows.unshifted_block` gives it: exp and the
sum of a row stay torch's. log1p is NumPy's, since only the sum of the losses is seen.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from unixent.options import LossOptions
from unixent_torch import compat
from unixent_torch.kernel.rows import LEAST_CLASS
from unixent_torch.kernel.spec import Spec
from unixent_torch.logits.autograd import gradients
from unixent_torch.logits.reduction import Call

# Beyond these many logits torch's threads are worth more than cheap calls.
_ELEMENTS = 1 << 14
_DTYPES = frozenset({torch.float32, torch.float64})

Array = np.ndarray[Any, Any]


def small_loss(x: Any, target: Any, options: LossOptions) -> Tensor | None:
    """The loss where it is small and plain and nothing is wrong with the call; None where it has to be checked."""
    if (
        torch.compiler.is_dynamo_compiling()
        or not compat.complete
        or compat.num_dispatch_modes()
        or compat.transforms_active()
        or not (type(x) is Tensor or type(x) is Parameter)
        or type(target) is not Tensor
        or x.dtype not in _DTYPES
        or target.dtype != torch.int64
        or not (x.is_cpu and target.is_cpu and x.is_contiguous())
        or x.numel() > _ELEMENTS
        or x.shape[:-1] != target.shape
        or not (options.axis == -1 or options.axis == x.ndim - 1)
        or options.reduction == "none"
        or options.label_smoothing
        or options.z_loss
        or options.softcap is not None
        or options.dtype is not None
        or compat.in_forward_mode()
        or compat.is_jit_tracing()
    ):
        return None
    index = target.numpy().reshape(-1)
    count = len(index)
    if count < 2:  # the value of one position is its loss, whose bits are told
        return None
    classes = x.shape[-1]
    # argmin and argmax are called in a fraction of the time of min and max, here and below.
    if index.item(index.argmin()) < 0 or index.item(index.argmax()) >= classes or 0 <= options.ignore_index < classes:
        return None
    block = torch.exp(x.detach())
    differentiated = x.requires_grad and torch.is_grad_enabled()
    denominator = count if options.reduction == "mean" else 1
    losses = _solve(block, index, 1 / denominator if differentiated else None)
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
def _starts(rows: int, classes: int) -> Array:
    """Where each row starts in a flat block."""
    found = np.arange(0, rows * classes, classes)
    found.flags.writeable = False
    return found


def _solve(block: Tensor, y: Array, factor: float | None) -> Array | None:
    """The losses of rows whose exponentials ``block`` holds; with a factor they become the gradient.

    None where a row may have to be shifted, or NumPy would warn: within these bounds all that follows is far from the
    ends of float32, and no row is one of `_rows._rows_outside`.
    """
    rows = block if block.ndim == 2 else block.view(len(y), -1)
    e = rows.numpy()
    flat, own = e.reshape(-1), _starts(*e.shape) + y
    e_k = flat[own]
    flat[own] = 0
    rest = rows.sum(1).numpy()
    total = rest + e_k
    # argmin and argmax stop at a NaN.
    if not (
        rest.item(rest.argmin()) >= 1e-10 and e_k.item(e_k.argmin()) >= 1e-12 and total.item(total.argmax()) <= 1e15
    ):
        return None
    if not total.item(total.argmin()) >= 1:
        flat[own] = 1
        if flat.item(flat.argmin()) < LEAST_CLASS:
            return None
    if factor is not None:
        flat[own] = -rest
        push = 1 / total
        push *= factor
        e *= push[:, None]
    rest /= e_k
    losses: Array = np.log1p(rest, out=rest)
    return losses


class SmallLoss(Function):
    """A small loss under plain reverse mode, with the gradient that was formed along with it.

    What `save_for_backward` is for, telling of logits that were changed meanwhile and letting go of memory, is done by
    hand: it would take as long as the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Array, kept: tuple[Any, ...]) -> Tensor:
        ctx.kept = kept
        return torch.from_numpy(value)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if ctx.kept is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time: use retain_graph=True the first time"
            )
        grad, x, target, versions, denominator = ctx.kept
        if torch.is_grad_enabled() or compat.transforms_active() or compat.is_legacy_batched(upstream):
            if (x._version, target._version) != versions:
                raise RuntimeError("logits or target of unixent.cross_entropy were modified by an inplace operation")
            call = Call(Spec(x.dtype, 0.0, 0.0, None, True), 0, 0.0)
            (grad,) = gradients((x, target, None, None), upstream, float(denominator), call, ("logits",))
            return grad, None, None
        scale = upstream.item()
        if compat.keeps_graph():
            return grad * scale, None, None
        ctx.kept = None
        return grad if scale == 1 else grad.mul_(scale), None, None


_record = compat.fast_function(SmallLoss)
