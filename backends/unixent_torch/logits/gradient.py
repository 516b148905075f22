"""The first derivative of the loss as a function of its own, by the kernel, with derivatives of any order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from unixent.errors import BackendError
from unixent.logit_transform import LogitTransform
from unixent_torch import compat
from unixent_torch.kernel import KernelSpec, row_losses
from unixent_torch.kernel.mode import Mode
from unixent_torch.kernel.rows import scale_infinite_

# logits, target, weight, position weight: as `row_losses` takes them.
Operands: TypeAlias = "tuple[Tensor, Tensor, Tensor | None, Tensor | None]"

# What a gradient may be asked of, in the order of the functions' inputs.
NAMES = ("logits", "target")


def needed(ctx: Any, names: tuple[str, ...] = NAMES) -> tuple[str, ...]:
    """Which of the first inputs of a function autograd wants a gradient of."""
    return tuple(compress(names, ctx.needs_input_grad))


def in_order(
    wrt: tuple[str, ...], grads: tuple[Tensor, ...], constants: int, names: tuple[str, ...] = NAMES
) -> tuple[Tensor | None, ...]:
    """Gradients in the order of a function's inputs, the last of which are constants."""
    by_name = dict(zip(wrt, grads, strict=True))
    return (*map(by_name.get, names), *(None,) * constants)


def given_tangents(tangents: tuple[Any, ...], names: tuple[str, ...] = NAMES) -> dict[str, Tensor]:
    """The tangents that there are, by the names of their inputs."""
    return {name: tangent for name, tangent in zip(names, tangents, strict=False) if tangent is not None}


class RowGradient(Function):
    """The gradient of ``sum(grad_scale * losses)`` for each of ``wrt``, with ``grad_scale`` of shape P."""

    @staticmethod
    def forward(
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        position_weight: Tensor | None,
        grad_scale: Tensor,
        spec: KernelSpec,
        wrt: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        return row_losses(x, target, weight, position_weight, grad_scale, spec, wrt)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.spec, ctx.wrt = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        x, target, weight, position_weight, grad_scale = ctx.saved_tensors
        operands = (x, target, weight, position_weight)
        tangents = given_tangents(grad_outputs, ctx.wrt)
        if not tangents:
            return (None,) * 7
        for_x, for_target = hvp(operands, grad_scale, ctx.spec, tangents)
        for_scale = None
        if ctx.needs_input_grad[4]:
            unscaled = RowGradient.apply(*operands, torch.ones_like(grad_scale), ctx.spec, tuple(tangents))
            for_scale = inner(unscaled, tangents, grad_scale.dtype)
        return (
            for_x.to(x.dtype) if ctx.needs_input_grad[0] else None,
            for_target.to(target.dtype) if for_target is not None and ctx.needs_input_grad[1] else None,
            None,
            None,
            for_scale,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        x, target, weight, position_weight, grad_scale = ctx.saved_tensors
        operands, scale_tangent = (x, target, weight, position_weight), tangents[4]
        for_x, for_target = hvp(operands, grad_scale, ctx.spec, given_tangents(tangents))
        change = {
            "logits": for_x.to(x.dtype),
            "target": None if for_target is None else for_target.to(target.dtype),
        }
        if scale_tangent is None:
            return tuple(torch.zeros_like(target) if change[name] is None else change[name] for name in ctx.wrt)
        rescaled = RowGradient.apply(*operands, scale_tangent, ctx.spec, ctx.wrt)
        return tuple(
            more if change[name] is None else change[name] + more for name, more in zip(ctx.wrt, rescaled, strict=True)
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        *tensors, spec, wrt = inputs
        dims = (0,) * len(wrt)
        if in_dims[2] is not None:
            items = [RowGradient.apply(*item, spec, wrt) for item in unbatched(info, in_dims, tuple(tensors))]
            return tuple(torch.stack(each) for each in zip(*items, strict=True)), dims
        return RowGradient.apply(*batched(info, in_dims, tuple(tensors)), spec, wrt), dims


def scale_infinite(grad: Tensor, factor: Tensor) -> Tensor:
    """``grad * factor`` with 0 * inf = 0, by plain operations: a gradient of probabilities is infinite at -inf logits.

    Its derivative along the factor is still infinite there: twice the largest number is multiplied with.
    """
    drop = (factor == 0) & grad.isinf()
    largest = torch.finfo(grad.dtype).max
    return torch.where(drop, factor * torch.sign(grad) * largest * largest, torch.where(drop, 0, grad) * factor)


def scaled(name: str, grad: Tensor, factor: Tensor, in_place: bool = False) -> Tensor:
    """The gradient for ``name``, times an upstream one; ``in_place`` where nobody else reads it."""
    if name == "target":
        return scale_infinite_(grad, factor) if in_place else scale_infinite(grad, factor)
    return grad.mul_(factor) if in_place else grad * factor


def owned(grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Saved gradients for the caller, who may write to them: copies where the graph is kept to be run again."""
    return tuple(grad.clone() for grad in grads) if compat.keeps_graph() else grads


def inner(grads: tuple[Tensor, ...], tangents: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """<gradient, tangent> of each position, summed over the arguments."""
    pairs = zip(grads, tangents.items(), strict=True)
    products = [scaled(name, grad.to(dtype), tangent.to(dtype)).sum(-1) for grad, (name, tangent) in pairs]
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


def composed_vjp(
    loss_of: Callable[..., Tensor], values: tuple[Tensor, ...], grad_output: Tensor, mode: Mode
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss of plain operations and its gradients; to be differentiated once more by transforms alone."""
    if mode is Mode.RECORDED:
        raise BackendError("value_and_grad: torch.jit.trace records no gradient; trace the loss and differentiate that")
    with torch.set_grad_enabled(torch.is_grad_enabled() and mode is Mode.COMPOSED):
        loss, vjp = torch.func.vjp(loss_of, *values)
        return loss, vjp(grad_output)


def transform_for_hvp(x: Tensor, transform: LogitTransform) -> tuple[Tensor, Tensor | float, Tensor | None]:
    """x' = b a tanh(x / a), its derivative, and the tanh: its second derivative is -2 tanh / a times the first."""
    softcap, inverse_temperature = transform
    transform_grad: Tensor | float = inverse_temperature
    tanh = None
    if softcap is not None:
        tanh = torch.tanh(x / softcap)
        transform_grad = inverse_temperature * (1 - tanh * tanh)
        x = torch.where(x.isinf(), x, softcap * tanh)
    return x if inverse_temperature == 1 else x * inverse_temperature, transform_grad, tanh


def hvp(
    operands: Operands, grad_scale: Tensor, spec: KernelSpec, tangents: dict[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    r"""The second derivative of ``sum(grad_scale * losses)`` times tangents u of logits and r of probabilities.

    With T = sum_c t_c, A = T + 2 z lse, k = (1 - s) w, t' = k r and T' its sum, of x' (see `transform_for_hvp`):

        logits:         p (A (u - <p, u>) + 2 z <p, u>) + p T' - t'
        probabilities:  k (<p, u> - u)

    It is symmetric, so it serves forward and reverse mode alike.
    """
    x, target, weight, position_weight = operands
    scale = grad_scale
    x = x.to(spec.acc_dtype)
    inactive: Tensor | None = None
    if position_weight is not None:
        scale = torch.where(position_weight == 0, 0, grad_scale * position_weight)
        inactive = (position_weight == 0).unsqueeze(-1)
        x = torch.where(inactive, 0, x)
    x, transform_grad, tanh = transform_for_hvp(x, spec.transform)
    one_minus_smoothing, smoothing = 1 - spec.label_smoothing, spec.label_smoothing / x.shape[-1]
    k: Tensor | float = one_minus_smoothing if weight is None else one_minus_smoothing * weight
    if target.is_floating_point():
        coefs = target.to(x.dtype) * k + smoothing * (1.0 if weight is None else weight)
        if inactive is not None:
            coefs = torch.where(inactive, 0, coefs)
    else:
        is_target = torch.arange(x.shape[-1], device=x.device) == target.unsqueeze(-1)
        base = torch.full((), smoothing, dtype=x.dtype, device=x.device)
        coefs = torch.where(is_target, one_minus_smoothing + smoothing, base)
        coefs = coefs if weight is None else coefs * weight
    p = torch.softmax(x, -1)
    coef_sum = coefs.sum(-1, keepdim=True)
    if spec.z_loss:
        coef_sum = coef_sum + 2 * spec.z_loss * torch.logsumexp(x, -1, keepdim=True)
    for_x = torch.zeros_like(x)
    for_target = None
    if "logits" in tangents:
        u = transform_grad * tangents["logits"].to(x.dtype)
        mean = (p * u).sum(-1, keepdim=True)
        for_x = transform_grad * (p * (coef_sum * (u - mean) + 2 * spec.z_loss * mean))
        if tanh is not None and spec.transform.softcap is not None:
            for_x = for_x - 2 / spec.transform.softcap * tanh * u * (coef_sum * p - coefs)
        if target.is_floating_point():
            for_target = scale.unsqueeze(-1) * (k * (mean - u))
    if "target" in tangents:
        r = k * tangents["target"].to(x.dtype)
        for_x = for_x + transform_grad * (p * r.sum(-1, keepdim=True) - r)
    return scale.unsqueeze(-1) * for_x, for_target
