"""The eager loss as a function that autograd and torch.func can differentiate.

`EagerLoss` is the everyday path: the gradient of a scalar loss is formed in the forward pass and scaled in the
backward. `Loss` is the same function for torch.func and forward mode, where what is formed early would be a constant to
the outer transforms. Under both, a derivative of the derivative goes through `Gradient`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch import compat
from unixent_torch.kernel.composed import solve
from unixent_torch.logits.gradient import Gradient, Operands, batched, inner, unbatched
from unixent_torch.logits.reduction import Call, Denominator, factor, reduce, spread


def apply(operands: Operands, denominator: Denominator, call: Call) -> Tensor:
    """The loss, recorded for whatever derivative may be asked of it."""
    if compat.transforms_active() or compat.in_forward_mode():
        loss: Tensor = Loss.apply(*operands, denominator, call)
        return loss
    x, target = operands[:2]
    if torch.is_grad_enabled() and (x.requires_grad or target.requires_grad):
        loss = EagerLoss.apply(*operands, denominator, call)
        return loss
    return reduce(solve(*operands, None, call.spec)[0], denominator, call)


def is_transformed(upstream: Tensor) -> bool:
    functorch = torch._C._functorch
    return bool(compat.transforms_active() or functorch.is_legacy_batchedtensor(upstream))


def asked(ctx: Any) -> tuple[str, ...]:
    """Which of the first two inputs autograd wants a gradient of."""
    return tuple(name for name, needed in zip(("logits", "target"), ctx.needs_input_grad, strict=False) if needed)


def arranged(wrt: tuple[str, ...], grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Gradients in the order of the inputs: logits, target, and four constants."""
    by_name = dict(zip(wrt, grads, strict=True))
    return by_name.get("logits"), by_name.get("target"), None, None, None, None


class EagerLoss(Function):
    """The loss under plain reverse mode: a scalar's gradient is formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        v: Tensor | None,
        denominator: Denominator,
        call: Call,
    ) -> Tensor:
        spec, wrt = call.spec, asked(ctx)
        # A rounded gradient can't be scaled: what underflowed stays lost. On the host one can see whether it has to be.
        formed = wrt if call.kept == 0 and (spec.host or x.dtype == spec.acc_dtype) else ()
        losses, grads = solve(x, target, weight, v, factor(1.0, denominator, call), spec, formed)
        ctx.call, ctx.denominator = call, denominator
        ctx.save_for_backward(x, target, weight, v, *grads)
        return reduce(losses, denominator, call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        call, denominator, wrt = ctx.call, ctx.denominator, asked(ctx)
        x, target, weight, v, *grads = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(upstream):
            found = gradients((x, target, weight, v), upstream, denominator, call, wrt)
        elif grads and call.spec.host and upstream.item() == 1:
            found = tuple(grads)
        elif grads and all(grad.dtype == call.spec.acc_dtype for grad in grads):
            found = tuple(_scaled(grad, upstream) for grad in grads)
        else:
            del grads
            scale = spread(factor(upstream, denominator, call), x.shape[:-1])
            found = solve(x, target, weight, v, scale, call.spec, wrt)[1]
        return arranged(wrt, found)


def _scaled(grad: Tensor, upstream: Tensor) -> Tensor:
    # The saved gradient is read once more only where the graph is kept.
    if compat.keeps_graph():
        return grad * upstream
    return grad.mul_(upstream)


def gradients(
    operands: Operands, upstream: Tensor, denominator: Denominator, call: Call, wrt: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """The gradients as differentiable functions of the operands and the upstream gradient."""
    shape = operands[0].shape[:-1]
    if compat.is_legacy_batched(upstream):
        # The vmap behind is_grads_batched knows nothing of Functions: multiply by plain operations.
        x, target, weight, v = operands
        kind = call.spec.acc_dtype
        wide = (x.to(kind), target.to(kind) if target.is_floating_point() else target, weight, v)
        one = torch.ones(shape[: call.kept], dtype=kind, device=x.device)
        grads = gradients(wide, one, denominator, call, wrt)
        upstream = spread(upstream, shape).unsqueeze(-1)
        dtypes = {"logits": x.dtype, "target": target.dtype}
        return tuple((grad * upstream).to(dtypes[name]) for name, grad in zip(wrt, grads, strict=True))
    found: tuple[Tensor, ...] = Gradient.apply(
        *operands, spread(factor(upstream, denominator, call), shape), call.spec, wrt
    )
    return found


class Loss(Function):
    """The loss under every transform."""

    @staticmethod
    def forward(
        x: Tensor, target: Tensor, weight: Tensor | None, v: Tensor | None, denominator: Denominator, call: Call
    ) -> Tensor:
        return reduce(solve(x, target, weight, v, None, call.spec)[0], denominator, call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *operands, denominator, call = inputs
        ctx.call, ctx.number = call, None
        if isinstance(denominator, float):
            ctx.number, denominator = denominator, None
        ctx.save_for_backward(*operands, denominator)
        ctx.save_for_forward(*operands, denominator)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        *operands, denominator = ctx.saved_tensors
        denominator = denominator if ctx.number is None else ctx.number
        wrt = asked(ctx)
        return arranged(wrt, gradients(tuple(operands), upstream, denominator, ctx.call, wrt))

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, target_t: Tensor | None, *_: Any) -> Tensor:
        *operands, denominator = ctx.saved_tensors
        denominator = denominator if ctx.number is None else ctx.number
        call, positions = ctx.call, operands[0].shape[:-1]
        tangents = {name: t for name, t in (("logits", x_t), ("target", target_t)) if t is not None}
        one = torch.ones(positions[: call.kept], dtype=call.spec.acc_dtype, device=operands[0].device)
        grads = gradients(tuple(operands), one, denominator, call, tuple(tangents))
        change = inner(grads, tuple(tangents.values()), one.dtype)
        return change.sum(tuple(range(call.kept, len(positions)))) if call.kept < len(positions) else change

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: Tensor, target: Tensor, weight: Tensor | None, v: Any, denominator: Any, call: Call
    ) -> tuple[Tensor, int]:
        operands = (x, target, weight, v, denominator)
        if in_dims[2] is not None:
            rows = unbatched(info, in_dims, operands)
            return torch.stack([Loss.apply(*row, call) for row in rows]), 0
        operands = batched(info, in_dims, operands)
        return Loss.apply(*operands, replace(call, kept=call.kept + 1)), 0
