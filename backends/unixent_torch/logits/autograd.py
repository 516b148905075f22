"""The loss as functions that autograd and torch.func can differentiate.

`ReverseLoss` is the everyday path: the gradient of a scalar loss is formed in the forward pass and scaled in the
backward. `TransformedLoss` is the same function for torch.func and forward mode, where what is formed early would be a
constant to the outer transforms. Under both, a derivative of the derivative goes through `RowGradient`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch import compat
from unixent_torch.kernel import row_losses, triton
from unixent_torch.kernel.triton.columns import RowColumns
from unixent_torch.logits.gradient import (
    Operands,
    RowGradient,
    batched,
    given_tangents,
    in_order,
    inner,
    needed,
    owned,
    scaled,
    unbatched,
)
from unixent_torch.logits.reduction import Denominator, LossSpec, expand_to, grad_scale_of, reduce


def is_transformed(grad_output: Tensor) -> bool:
    """Whether a backward pass runs under a transform, in forward mode, or under the vmap of ``is_grads_batched``."""
    return compat.transforms_active() or compat.in_forward_mode() or compat.is_legacy_batched(grad_output)


class ReverseLoss(Function):
    """The loss under plain reverse mode: a scalar's gradient is formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        position_weight: Tensor | None,
        denominator: Denominator,
        spec: LossSpec,
    ) -> Tensor:
        kernel = spec.kernel
        ctx.spec, ctx.denominator, ctx.has_columns = spec, denominator, False
        if x.device.type in triton.DEVICES and triton.takes(kernel, x, target, weight, position_weight):
            # The gradient is formed in the backward, upstream factor and all, from a few numbers a row.
            losses, columns = triton.row_statistics(x, target, weight, position_weight, kernel)
            ctx.save_for_backward(x, target, weight, position_weight, *columns)
            ctx.has_columns = True
            return reduce(losses, denominator, spec, kernel.readable)
        # A rounded gradient can't be scaled: what underflowed stays lost. On the host one can see whether it has to be.
        early = spec.kept_axes == 0 and (kernel.readable or x.dtype == kernel.acc_dtype)
        wrt = needed(ctx) if early else ()
        scale = grad_scale_of(1.0, denominator, spec)
        losses, grads = row_losses(x, target, weight, position_weight, scale, kernel, wrt)
        ctx.save_for_backward(x, target, weight, position_weight, *grads)
        return reduce(losses, denominator, spec, kernel.readable)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        spec, denominator, wrt = ctx.spec, ctx.denominator, needed(ctx)
        x, target, weight, position_weight, *saved = ctx.saved_tensors
        operands = (x, target, weight, position_weight)
        if torch.is_grad_enabled() or is_transformed(grad_output):
            grads = gradients(operands, grad_output, denominator, spec, wrt)
        elif ctx.has_columns:
            scale = expand_to(grad_scale_of(grad_output, denominator, spec), x.shape[:-1])
            columns = RowColumns(*saved)
            grads = triton.row_gradients(*operands, scale, spec.kernel, columns, wrt)
        elif saved and spec.kernel.readable and grad_output.item() == 1:
            grads = owned(tuple(saved))
        elif saved and all(grad.dtype == spec.kernel.acc_dtype for grad in saved):
            in_place = not compat.keeps_graph()
            grads = tuple(scaled(name, grad, grad_output, in_place) for name, grad in zip(wrt, saved, strict=True))
        else:
            del saved
            scale = expand_to(grad_scale_of(grad_output, denominator, spec), x.shape[:-1])
            grads = row_losses(*operands, scale, spec.kernel, wrt)[1]
        return in_order(wrt, grads, 4)


def gradients(
    operands: Operands, grad_output: Tensor, denominator: Denominator, spec: LossSpec, wrt: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """The gradients as differentiable functions of the operands and the upstream gradient."""
    shape, kernel = operands[0].shape[:-1], spec.kernel
    batched_by_vmap = compat.is_legacy_batched(grad_output)
    along = grad_output
    if batched_by_vmap:
        # The vmap behind is_grads_batched knows nothing of Functions: multiply by plain operations.
        x, target, weight, position_weight = operands
        dtype = kernel.acc_dtype
        operands = (x.to(dtype), target.to(dtype) if target.is_floating_point() else target, weight, position_weight)
        along = torch.ones(shape[: spec.kept_axes], dtype=dtype, device=x.device)
    scale = expand_to(grad_scale_of(along, denominator, spec), shape)
    grads: tuple[Tensor, ...] = RowGradient.apply(*operands, scale, kernel, wrt)
    if batched_by_vmap:
        dtypes = {"logits": x.dtype, "target": target.dtype}
        grad_output = expand_to(grad_output, shape).unsqueeze(-1)
        grads = tuple(scaled(name, grad, grad_output).to(dtypes[name]) for name, grad in zip(wrt, grads, strict=True))
    return grads


class TransformedLoss(Function):
    """The loss under every transform."""

    @staticmethod
    def forward(
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        position_weight: Tensor | None,
        denominator: Denominator,
        spec: LossSpec,
    ) -> Tensor:
        losses, _ = row_losses(x, target, weight, position_weight, None, spec.kernel)
        return reduce(losses, denominator, spec, spec.kernel.readable)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *operands, denominator, ctx.spec = inputs
        save_with_denominator(ctx, operands, denominator)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Any:
        if grad_output is None:
            return (None,) * 6
        operands, denominator = saved_with_denominator(ctx)
        wrt = needed(ctx)
        return in_order(wrt, gradients(operands, grad_output, denominator, ctx.spec, wrt), 4)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        operands, denominator = saved_with_denominator(ctx)
        spec, positions = ctx.spec, operands[0].shape[:-1]
        kept, along = spec.kept_axes, given_tangents(tangents)
        one = torch.ones(positions[:kept], dtype=spec.kernel.acc_dtype, device=operands[0].device)
        grads = gradients(operands, one, denominator, spec, tuple(along))
        change = inner(grads, along, one.dtype)
        return change.sum(tuple(range(kept, len(positions)))) if kept < len(positions) else change

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, spec = inputs
        if in_dims[2] is not None:
            items = unbatched(info, in_dims, tuple(tensors))
            return torch.stack([TransformedLoss.apply(*item, spec) for item in items]), 0
        spec = replace(spec, kept_axes=spec.kept_axes + 1)
        return TransformedLoss.apply(*batched(info, in_dims, tuple(tensors)), spec), 0


def save_with_denominator(ctx: Any, tensors: list[Any], denominator: Denominator) -> None:
    """Save tensors and the denominator, which may be a number, for both directions of autograd.

    What has no tangent or no upstream gradient is None there, not zeros.
    """
    ctx.set_materialize_grads(False)
    is_number = isinstance(denominator, float)
    ctx.number = denominator if is_number else None
    saved = (*tensors, None if is_number else denominator)
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def saved_with_denominator(ctx: Any) -> tuple[Any, Denominator]:
    """What `save_with_denominator` saved: the tensors and the denominator."""
    *tensors, denominator = ctx.saved_tensors
    return tuple(tensors), denominator if ctx.number is None else ctx.number
