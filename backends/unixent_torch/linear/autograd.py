"""Derivatives of the fused linear form, to any order and through every transform, without all logits at a time.

As in `unixent_torch.logits.autograd`: `ReverseLinear` for the everyday backward pass, `TransformedLinear` for
torch.func and forward mode, `LinearGradient` for the first derivative as a function of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent.errors import BackendError
from unixent_torch import compat
from unixent_torch.linear.chunks import NAMES, LinearOperands, LinearSpec, linear_row_losses
from unixent_torch.linear.derivatives import directional, gradients, linear_hvp
from unixent_torch.logits.autograd import is_transformed, save_with_denominator, saved_with_denominator
from unixent_torch.logits.gradient import (
    batched,
    given_tangents,
    in_order,
    needed,
    owned,
    scaled,
    unbatched,
)
from unixent_torch.logits.reduction import Denominator, expand_to, grad_scale_of, reduce

# classifier, bias and weight: what all positions of one call have in common.
_SHARED = (1, 2, 4)


def cast_like(wrt: tuple[str, ...], grads: tuple[Tensor, ...], operands: LinearOperands) -> tuple[Tensor, ...]:
    """Gradients in the dtypes of what they are taken with respect to."""
    return tuple([grad.to(getattr(operands, name).dtype) for name, grad in zip(wrt, grads, strict=True)])


def forms_gradient_late(operands: LinearOperands, spec: LinearSpec, wrt: tuple[str, ...]) -> bool:
    """Whether the gradient waits for the upstream one.

    Gradients are rounded only when the upstream one is known, since what has underflowed can't be scaled. That of
    probabilities is as large as the logits, so it is never held in more than its own dtype.
    """
    loss = spec.loss
    return loss.kept_axes > 0 or ("target" in wrt and operands.target.dtype != loss.kernel.acc_dtype)


class ReverseLinear(Function):
    """The loss under plain reverse mode: a scalar's gradients are formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        operands, denominator, spec = LinearOperands(*inputs[:6]), inputs[6], inputs[7]
        wrt = needed(ctx, NAMES)
        early = () if forms_gradient_late(operands, spec, wrt) else wrt
        losses, grads = linear_row_losses(operands, grad_scale_of(1.0, denominator, spec.loss), spec, early)
        ctx.spec, ctx.denominator = spec, denominator
        ctx.save_for_backward(*operands, *grads)
        return reduce(losses, denominator, spec.loss, spec.loss.kernel.readable)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        spec, denominator, wrt = ctx.spec, ctx.denominator, needed(ctx, NAMES)
        saved = ctx.saved_tensors
        operands, grads = LinearOperands(*saved[:6]), saved[6:]
        transformed = is_transformed(grad_output)
        if torch.is_grad_enabled() or (transformed and not grads):
            return in_order(wrt, _gradients(operands, grad_output, denominator, spec, wrt), 4, NAMES)
        if not grads:
            scale = expand_to(grad_scale_of(grad_output, denominator, spec.loss), operands.hidden.shape[:-1])
            grads = linear_row_losses(operands, scale, spec, wrt)[1]
        elif transformed or not spec.loss.kernel.readable or grad_output.item() != 1:
            in_place = not (transformed or compat.keeps_graph())
            grads = tuple(scaled(name, grad, grad_output, in_place) for name, grad in zip(wrt, grads, strict=True))
        else:
            grads = owned(grads)
        return in_order(wrt, cast_like(wrt, grads, operands), 4, NAMES)


def _gradients(
    operands: LinearOperands, grad_output: Tensor, denominator: Denominator, spec: LinearSpec, wrt: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """The gradients as differentiable functions of the operands and the upstream gradient."""
    scale = expand_to(grad_scale_of(grad_output, denominator, spec.loss), operands.hidden.shape[:-1])
    if compat.is_legacy_batched(grad_output):
        # The vmap behind is_grads_batched knows nothing of Functions.
        grads = gradients(operands, scale, spec, wrt)
    else:
        grads = LinearGradient.apply(*operands, scale, spec, wrt)
    return cast_like(wrt, grads, operands)


class TransformedLinear(Function):
    """The loss under every transform."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        operands, denominator, spec = LinearOperands(*inputs[:6]), inputs[6], inputs[7]
        losses = linear_row_losses(operands, None, spec)[0]
        return reduce(losses, denominator, spec.loss, spec.loss.kernel.readable)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *operands, denominator, ctx.spec = inputs
        save_with_denominator(ctx, operands, denominator)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Any:
        if grad_output is None:
            return (None,) * 8
        tensors, denominator = saved_with_denominator(ctx)
        wrt = needed(ctx, NAMES)
        return in_order(wrt, _gradients(LinearOperands(*tensors), grad_output, denominator, ctx.spec, wrt), 4, NAMES)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        tensors, denominator = saved_with_denominator(ctx)
        loss = ctx.spec.loss
        kept = loss.kept_axes
        change = directional(LinearOperands(*tensors), ctx.spec, given_tangents(tangents, NAMES))
        one = torch.ones(change.shape[:kept], dtype=change.dtype, device=change.device)
        change = change * expand_to(grad_scale_of(one, denominator, loss), change.shape)
        return change.sum(tuple(range(kept, change.ndim))) if kept < change.ndim else change

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, spec = inputs
        if any(in_dims[i] is not None for i in _SHARED):
            items = unbatched(info, in_dims, tuple(tensors))
            return torch.stack([TransformedLinear.apply(*item, spec) for item in items]), 0
        spec = replace(spec, loss=replace(spec.loss, kept_axes=spec.loss.kept_axes + 1))
        return TransformedLinear.apply(*batched(info, in_dims, tuple(tensors), _SHARED), spec), 0


class LinearGradient(Function):
    """The gradient of ``sum(grad_scale * losses)`` for each of ``wrt``, in the dtypes of `linear_row_losses`.

    ``grad_scale`` has shape P.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        operands, (grad_scale, spec, wrt) = LinearOperands(*inputs[:6]), inputs[6:]
        return linear_row_losses(operands, grad_scale, spec, wrt)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.spec, ctx.wrt = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        *tensors, grad_scale = ctx.saved_tensors
        operands, wrt = LinearOperands(*tensors), needed(ctx, NAMES)
        tangents = given_tangents(grad_outputs, ctx.wrt)
        if not tangents:
            return (None,) * 9
        grads = cast_like(wrt, linear_hvp(operands, grad_scale, ctx.spec, tangents, wrt), operands)
        for_scale = directional(operands, ctx.spec, tangents) if ctx.needs_input_grad[6] else None
        return (*in_order(wrt, grads, 2, NAMES), for_scale, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        *tensors, grad_scale = ctx.saved_tensors
        operands, along, wrt = LinearOperands(*tensors), given_tangents(tangents, NAMES), ctx.wrt
        change = linear_hvp(operands, grad_scale, ctx.spec, along, wrt) if along else ()
        if tangents[6] is None:
            return change
        rescaled: tuple[Tensor, ...] = LinearGradient.apply(*operands, tangents[6], ctx.spec, wrt)
        return tuple(a + b for a, b in zip(change, rescaled, strict=True)) if along else rescaled

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        *tensors, spec, wrt = inputs
        dims = (0,) * len(wrt)
        if any(in_dims[i] is not None for i in _SHARED) or not {"hidden", "target"}.issuperset(wrt):
            grads = [LinearGradient.apply(*item, spec, wrt) for item in unbatched(info, in_dims, tuple(tensors))]
            return tuple(map(torch.stack, zip(*grads, strict=True))), dims
        return LinearGradient.apply(*batched(info, in_dims, tuple(tensors), _SHARED), spec, wrt), dims


def only_plain_backward() -> BackendError:
    return BackendError(
        "parallel: the fused linear form with its classifier split has a plain backward pass; forward mode, "
        "torch.func, is_grads_batched and second derivatives were not expected (logits have some)"
    )


class NoDoubleBackward(Function):
    """A gradient that depends on the inputs of the loss, and says so when it is differentiated.

    Without it a second derivative would be left out without a word.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, error: Exception, *inputs: Tensor | None) -> Tensor:
        ctx.error = error
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise ctx.error
