"""Derivatives of the fused linear form, to any order and through every transform, without all logits at a time.

As in `unixent_torch.logits.autograd`: `EagerLinear` for the everyday backward pass, `Linear` for torch.func
and forward mode, `LinearGradient` for the first derivative as a function of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch import compat
from unixent_torch.linear.chunks import LinearOperands, LinearSpec, solve_linear
from unixent_torch.linear.derivatives import directional, gradients, second
from unixent_torch.logits.autograd import is_transformed
from unixent_torch.logits.gradient import batched, unbatched
from unixent_torch.logits.reduction import Call, Denominator, factor, reduce, spread

# What a gradient may be asked of, in the order of the functions' inputs; weight, v and more follow.
NAMES = ("hidden", "classifier", "bias", "target")


@dataclass(frozen=True, slots=True)
class LinearCall:
    """How the losses are found, and what to make of them."""

    spec: LinearSpec
    call: Call


def apply_linear(operands: LinearOperands, denominator: Denominator, how: LinearCall) -> Tensor:
    """The loss, recorded for whatever derivative may be asked of it."""
    if compat.transforms_active() or compat.in_forward_mode():
        loss: Tensor = Linear.apply(*operands, denominator, how)
        return loss
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in operands[:4]):
        loss = EagerLinear.apply(*operands, denominator, how)
        return loss
    return reduce(solve_linear(operands, None, how.spec)[0], denominator, how.call)


def _wrt(ctx: Any) -> tuple[str, ...]:
    return tuple(name for name, needed in zip(NAMES, ctx.needs_input_grad, strict=False) if needed)


def _arranged(wrt: tuple[str, ...], grads: tuple[Tensor, ...], constants: int) -> tuple[Tensor | None, ...]:
    """Gradients in the order of a function's inputs."""
    by_name = dict(zip(wrt, grads, strict=True))
    return (*map(by_name.get, NAMES), *(None,) * constants)


def rounded(wrt: tuple[str, ...], grads: tuple[Tensor, ...], operands: LinearOperands) -> tuple[Tensor, ...]:
    return tuple(grad.to(getattr(operands, name).dtype) for name, grad in zip(wrt, grads, strict=True))


class EagerLinear(Function):
    """The loss under plain reverse mode: a scalar's gradients are formed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        operands, (denominator, how) = LinearOperands(*inputs[:6]), inputs[6:]
        wrt, call = _wrt(ctx), how.call
        # They are rounded only when the upstream gradient is known, since what has underflowed can't be scaled. The
        # gradient of probabilities is as large as the logits, so it is never held in more than its own dtype.
        late = call.kept > 0 or ("target" in wrt and operands.target.dtype != call.spec.acc_dtype)
        losses, grads = solve_linear(operands, factor(1.0, denominator, call), how.spec, () if late else wrt)
        ctx.how, ctx.denominator = how, denominator
        ctx.save_for_backward(*operands, *grads)
        return reduce(losses, denominator, call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        how, denominator, wrt = ctx.how, ctx.denominator, _wrt(ctx)
        saved = ctx.saved_tensors
        operands, grads = LinearOperands(*saved[:6]), saved[6:]
        if torch.is_grad_enabled() or (is_transformed(upstream) and not grads):
            found = _gradients(operands, upstream, denominator, how, wrt)
        else:
            if not grads:
                f = spread(factor(upstream, denominator, how.call), operands.hidden.shape[:-1])
                grads = solve_linear(operands, f, how.spec, wrt)[1]
            elif not (how.call.spec.host and not is_transformed(upstream) and upstream.item() == 1):
                kept = compat.keeps_graph() or is_transformed(upstream)
                grads = tuple(grad * upstream if kept else grad.mul_(upstream) for grad in grads)
            found = rounded(wrt, grads, operands)
        return _arranged(wrt, found, 4)


def _gradients(
    operands: LinearOperands, upstream: Tensor, denominator: Denominator, how: LinearCall, wrt: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """The gradients as differentiable functions of the operands and the upstream gradient."""
    f = spread(factor(upstream, denominator, how.call), operands.hidden.shape[:-1])
    if compat.is_legacy_batched(upstream):
        # The vmap behind is_grads_batched knows nothing of Functions.
        grads = gradients(operands, f, how.spec, wrt)
    else:
        grads = LinearGradient.apply(*operands, f, how.spec, wrt)
    return rounded(wrt, grads, operands)


class Linear(Function):
    """The loss under every transform."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        operands, (denominator, how) = LinearOperands(*inputs[:6]), inputs[6:]
        return reduce(solve_linear(operands, None, how.spec)[0], denominator, how.call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *operands, denominator, ctx.how = inputs
        ctx.number = denominator if isinstance(denominator, float) else None
        tensors = (*operands, None if isinstance(denominator, float) else denominator)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def _saved(ctx: Any) -> tuple[LinearOperands, Denominator]:
        *operands, denominator = ctx.saved_tensors
        return LinearOperands(*operands), denominator if ctx.number is None else ctx.number

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (operands, denominator), wrt = Linear._saved(ctx), _wrt(ctx)
        return _arranged(wrt, _gradients(operands, upstream, denominator, ctx.how, wrt), 4)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (operands, denominator), call = Linear._saved(ctx), ctx.how.call
        change = directional(operands, ctx.how.spec, _along(tangents))
        one = torch.ones(change.shape[: call.kept], dtype=change.dtype, device=change.device)
        change = change * spread(factor(one, denominator, call), change.shape)
        return change.sum(tuple(range(call.kept, change.ndim))) if call.kept < change.ndim else change

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, how = inputs
        if any(in_dims[i] is not None for i in _SHARED):
            return torch.stack([Linear.apply(*item, how) for item in unbatched(info, in_dims, tuple(tensors))]), 0
        more = replace(how, call=replace(how.call, kept=how.call.kept + 1))
        return Linear.apply(*batched(info, in_dims, tuple(tensors), _SHARED), more), 0


class LinearGradient(Function):
    """The gradient of ``sum(f * losses)`` for each of ``wrt``, in the dtypes of `solve_linear`; ``f`` has shape P."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        operands, (f, spec, wrt) = LinearOperands(*inputs[:6]), inputs[6:]
        return solve_linear(operands, f, spec, wrt)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.spec, ctx.wrt = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        *tensors, f = ctx.saved_tensors
        operands, wrt = LinearOperands(*tensors), _wrt(ctx)
        along = dict(zip(ctx.wrt, upstream, strict=True))
        found = rounded(wrt, second(operands, f, ctx.spec, along, wrt), operands)
        by_f = directional(operands, ctx.spec, along) if ctx.needs_input_grad[6] else None
        return (*_arranged(wrt, found, 2), by_f, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        *tensors, f = ctx.saved_tensors
        operands, along, wrt = LinearOperands(*tensors), _along(tangents), ctx.wrt
        change = second(operands, f, ctx.spec, along, wrt) if along else ()
        if tangents[6] is None:
            return change
        moved: tuple[Tensor, ...] = LinearGradient.apply(*operands, tangents[6], ctx.spec, wrt)
        return tuple(a + b for a, b in zip(change, moved, strict=True)) if along else moved

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        *tensors, spec, wrt = inputs
        dims = (0,) * len(wrt)
        if any(in_dims[i] is not None for i in _SHARED) or not {"hidden", "target"}.issuperset(wrt):
            grads = [LinearGradient.apply(*item, spec, wrt) for item in unbatched(info, in_dims, tuple(tensors))]
            return tuple(map(torch.stack, zip(*grads, strict=True))), dims
        return LinearGradient.apply(*batched(info, in_dims, tuple(tensors), _SHARED), spec, wrt), dims


# classifier, bias and weight: what all positions of one kernel call have in common.
_SHARED = (1, 2, 4)


def _along(tangents: tuple[Any, ...]) -> dict[str, Tensor]:
    return {name: tangent for name, tangent in zip(NAMES, tangents, strict=False) if tangent is not None}
