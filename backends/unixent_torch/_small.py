"""Small plain problems on the host, where a call costs more than its arithmetic: straight through, mostly in NumPy.

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
from torch.autograd import Function, forward_ad
from torch.nn import Parameter

from unixent.protocol import Problem
from unixent_torch._autograd import gradients, is_transformed
from unixent_torch._kernel import Spec
from unixent_torch._reduction import Call
from unixent_torch._rows import LEAST_CLASS

# Beyond these many logits torch's threads are worth more than cheap calls.
_ELEMENTS = 1 << 14
_DTYPES = {"float32": torch.float32, "float64": torch.float64}

Array = np.ndarray[Any, Any]


def small_loss(problem: Problem) -> Tensor | None:
    """The loss where the problem is small and plain, and None elsewhere: then it has to go the long way."""
    x, target, options = problem.logits, problem.target, problem.options
    if (
        not problem.counted
        or x.numel() > _ELEMENTS
        or problem.weight is not None
        or problem.mask is not None
        or problem.normalizer is not None
        or problem.parallel is not None
        or problem.terms
        or options.label_smoothing
        or options.z_loss
        or options.softcap is not None
        or options.reduction == "none"
        or problem.axis != x.ndim - 1
        or problem.result_dtype != problem.accumulation
        or x.dtype != _DTYPES[problem.accumulation]
        or target.dtype != torch.int64
        or not (type(x) is Tensor or type(x) is Parameter)
        or not x.is_contiguous()
        or forward_ad._current_level >= 0
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        or torch._C._is_tracing()
    ):
        return None
    y = target.numpy().reshape(-1)
    if len(y) < 2:  # the value of one position is its loss, whose bits are told
        return None
    count = len(y) if options.reduction == "mean" else 1
    differentiated = x.requires_grad and torch.is_grad_enabled()
    block = torch.exp(x.detach())
    losses = _solve(block, y, 1 / count if differentiated else None)
    if losses is None:
        return None
    value = float(np.add.reduce(losses)) / count
    if not differentiated:
        return torch.scalar_tensor(value, dtype=x.dtype, device=x.device)
    loss: Tensor = _record(x, block, target, value, count)
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
    # argmin and argmax stop at a NaN, and are called in a fraction of the time of min and max.
    if not (
        rest[rest.argmin()] >= 1e-10
        and rest[rest.argmax()] <= 1e17
        and e_k[e_k.argmin()] >= 1e-12
        and e_k[e_k.argmax()] <= 1e15
    ):
        return None
    if not total[total.argmin()] >= 1:
        flat[own] = 1
        if flat[flat.argmin()] < LEAST_CLASS:
            return None
    if factor is not None:
        flat[own] = -rest
        push = 1 / total
        push *= factor
        e *= push[:, None]
    losses: Array = np.log1p(rest / e_k)
    return losses


class SmallLoss(Function):
    """A small loss under plain reverse mode, with the gradient that was formed along with it.

    What `save_for_backward` is for, telling of logits that were changed meanwhile and letting go of memory, is done by
    hand: it would take as long as the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, target: Tensor, value: float, count: int) -> Tensor:
        ctx.kept = grad, x, target, (x._version, target._version), count
        return torch.scalar_tensor(value, dtype=x.dtype, device=x.device)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if ctx.kept is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time: use retain_graph=True the first time"
            )
        grad, x, target, versions, count = ctx.kept
        if torch.is_grad_enabled() or is_transformed(upstream):
            if (x._version, target._version) != versions:
                raise RuntimeError("logits or target of unixent.cross_entropy were modified by an inplace operation")
            call = Call(Spec(x.dtype, 0.0, 0.0, None, True), 0, 0.0)
            (grad,) = gradients((x, target, None, None), upstream, float(count), call, ("logits",))
            return grad, None, None, None, None
        scale = upstream.item()
        if torch._C._autograd._get_current_graph_task_keep_graph():
            return grad * scale, None, None, None, None
        ctx.kept = None
        return grad if scale == 1 else grad.mul_(scale), None, None, None, None


# `Function.apply` without its look at torch.func, which `small_loss` has had.
_record = super(Function, SmallLoss).apply
