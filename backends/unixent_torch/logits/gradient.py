"""The first derivative of the loss as a function of its own, by the kernel, with derivatives of any order."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch.kernel.composed import solve
from unixent_torch.kernel.spec import Spec

# logits, target, weight, v: as `solve` takes them
Operands: TypeAlias = "tuple[Tensor, Tensor, Tensor | None, Tensor | None]"


class Gradient(Function):
    """The gradient of ``sum(f * losses)`` for each of ``wrt``, with ``f`` of shape P."""

    @staticmethod
    def forward(
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        v: Tensor | None,
        f: Tensor,
        spec: Spec,
        wrt: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        return solve(x, target, weight, v, f, spec, wrt)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.spec, ctx.wrt = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        x, target, weight, v, f = ctx.saved_tensors
        along = dict(zip(ctx.wrt, upstream, strict=True))
        by_x, by_target = curvature((x, target, weight, v), f, ctx.spec, along)
        by_f = None
        if ctx.needs_input_grad[4]:
            plain = Gradient.apply(x, target, weight, v, torch.ones_like(f), ctx.spec, ctx.wrt)
            by_f = inner(plain, upstream, f.dtype)
        return (
            by_x.to(x.dtype) if ctx.needs_input_grad[0] else None,
            by_target.to(target.dtype) if by_target is not None and ctx.needs_input_grad[1] else None,
            None,
            None,
            by_f,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_t: Any, target_t: Any, weight_t: Any, v_t: Any, f_t: Any, *_: Any) -> tuple[Tensor, ...]:
        x, target, weight, v, f = ctx.saved_tensors
        along = {name: t for name, t in (("logits", x_t), ("target", target_t)) if t is not None}
        by_x, by_target = curvature((x, target, weight, v), f, ctx.spec, along)
        change = {"logits": by_x.to(x.dtype), "target": None if by_target is None else by_target.to(target.dtype)}
        if f_t is None:
            return tuple(torch.zeros_like(target) if change[name] is None else change[name] for name in ctx.wrt)
        moved = Gradient.apply(x, target, weight, v, f_t, ctx.spec, ctx.wrt)
        return tuple(
            more if change[name] is None else change[name] + more for name, more in zip(ctx.wrt, moved, strict=True)
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        *tensors, spec, wrt = inputs
        dims = (0,) * len(wrt)
        if in_dims[2] is not None:
            rows = [Gradient.apply(*row, spec, wrt) for row in unbatched(info, in_dims, tuple(tensors))]
            return tuple(torch.stack(items) for items in zip(*rows, strict=True)), dims
        return Gradient.apply(*batched(info, in_dims, tuple(tensors)), spec, wrt), dims


def inner(grads: tuple[Tensor, ...], tangents: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """<gradient, tangent> of each position, summed over the arguments."""
    products = [(g.to(dtype) * t.to(dtype)).sum(-1) for g, t in zip(grads, tangents, strict=True)]
    return products[0] if len(products) == 1 else products[0] + products[1]


def batched(info: Any, in_dims: Any, tensors: tuple[Any, ...], shared: tuple[int, ...] = (2,)) -> tuple[Any, ...]:
    """Every tensor but the shared ones (the class weight) with the batch as its leading axis."""

    def front(position: int, value: Any) -> Any:
        if not isinstance(value, Tensor) or position in shared:
            return value
        dim = in_dims[position]
        return value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)

    return tuple(front(position, value) for position, value in enumerate(tensors))


def unbatched(info: Any, in_dims: Any, tensors: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The arguments of each item of the batch: class weights of its own can't share a kernel call."""
    return [
        tuple(value if dim is None else value.select(dim, i) for value, dim in zip(tensors, in_dims, strict=False))
        for i in range(info.batch_size)
    ]


def curvature(operands: Operands, f: Tensor, spec: Spec, along: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    r"""The second derivative of ``sum(f * losses)`` applied to directions u of logits and r of probabilities.

    With T = sum_c t_c, A = T + 2 z lse, k = (1 - s) w, t' = k r and T' its sum, before a softcap:

        logits:         p (A (u - <p, u>) + 2 z <p, u>) + p T' - t'
        probabilities:  k (<p, u> - u)

    It is symmetric, so it serves forward and reverse mode alike.
    """
    x, target, weight, v = operands
    scale = f if v is None else torch.where(v == 0, 0, f * v)
    x = x.to(spec.acc_dtype)
    if v is not None:
        x = torch.where((v == 0).unsqueeze(-1), 0, x)
    slope: Tensor | float = 1.0
    if spec.softcap is not None:
        bent = torch.tanh(x / spec.softcap)
        slope, x = 1 - bent * bent, spec.softcap * bent
    share, base = 1 - spec.smoothing, spec.smoothing / x.shape[-1]
    k: Tensor | float = share if weight is None else share * weight
    if target.is_floating_point():
        t = target.to(x.dtype) * k + base * (1.0 if weight is None else weight)
        if v is not None:
            t = torch.where((v == 0).unsqueeze(-1), 0, t)
    else:
        hot = torch.arange(x.shape[-1], device=x.device) == target.unsqueeze(-1)
        t = torch.where(hot, share + base, torch.full((), base, dtype=x.dtype, device=x.device))
        t = t if weight is None else t * weight
    p = torch.softmax(x, -1)
    mass = t.sum(-1, keepdim=True)
    if spec.z_loss:
        mass = mass + 2 * spec.z_loss * torch.logsumexp(x, -1, keepdim=True)
    by_x = torch.zeros_like(x)
    by_target = None
    if "logits" in along:
        u = slope * along["logits"].to(x.dtype)
        mean = (p * u).sum(-1, keepdim=True)
        by_x = slope * (p * (mass * (u - mean) + 2 * spec.z_loss * mean))
        if spec.softcap is not None:
            by_x = by_x - 2 / spec.softcap * bent * u * (mass * p - t)
        if target.is_floating_point():
            by_target = scale.unsqueeze(-1) * (k * (mean - u))
    if "target" in along:
        r = k * along["target"].to(x.dtype)
        by_x = by_x + slope * (p * r.sum(-1, keepdim=True) - r)
    return scale.unsqueeze(-1) * by_x, by_target
