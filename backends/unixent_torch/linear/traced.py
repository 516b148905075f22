"""The fused linear form for tracers: one opaque operator, so that a compiled call holds no more logits than others.

A compiler fuses the loss into a pass or two by itself, but not across a matrix product: of a plain composition it would
keep all logits and their gradient. The operator is the eager pass, run inside the compiled graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch.kernel import KernelSpec
from unixent_torch.linear.autograd import cast_like, forms_gradient_late
from unixent_torch.linear.chunks import NAMES, LinearOperands, LinearSpec, linear_row_losses
from unixent_torch.logits.gradient import in_order, scaled
from unixent_torch.logits.reduction import Denominator, LossSpec, expand_to, grad_scale_of, reduce


def _run(
    hidden: Tensor,
    classifier: Tensor,
    bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | None,
    acc_dtype: torch.dtype,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    readable: bool,
    chunk: int | None,
    product_dtype: torch.dtype | None,
    wrt: str,
) -> list[Tensor]:
    operands = LinearOperands(hidden, classifier, bias, target, weight, position_weight)
    kernel = KernelSpec(acc_dtype, label_smoothing, z_loss, softcap, readable)
    spec = LinearSpec(LossSpec(kernel, 0, 0.0), chunk, product_dtype)
    losses, grads = linear_row_losses(operands, grad_scale, spec, tuple(wrt.split()))
    return [losses, *grads]


_operator = torch.library.custom_op(
    "unixent::linear_cross_entropy",
    _run,
    mutates_args=(),
    schema=(
        "(Tensor hidden, Tensor classifier, Tensor? bias, Tensor target, Tensor? weight, Tensor? position_weight, "
        "Tensor? grad_scale, ScalarType acc_dtype, float label_smoothing, float z_loss, float? softcap, "
        "bool readable, int? chunk, ScalarType? product_dtype, str wrt) -> Tensor[]"
    ),
)


@_operator.register_fake
def _shapes(hidden: Tensor, classifier: Tensor, bias: Tensor | None, target: Tensor, *others: Any) -> list[Tensor]:
    acc_dtype, wrt = others[3], others[-1].split()
    sources = {"hidden": hidden, "classifier": classifier, "bias": bias, "target": target}
    results = [hidden.new_empty(hidden.shape[:-1], dtype=acc_dtype)]
    for name in wrt:
        source = sources[name]
        assert source is not None
        results.append(source.new_empty(source.shape, dtype=target.dtype if name == "target" else acc_dtype))
    return results


def opaque_row_losses(
    operands: LinearOperands, grad_scale: Tensor | None, spec: LinearSpec, wrt: tuple[str, ...] = ()
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`linear_row_losses` as one operator of the graph."""
    kernel = spec.loss.kernel
    losses, *grads = _operator(
        *operands,
        grad_scale,
        kernel.acc_dtype,
        kernel.label_smoothing,
        kernel.z_loss,
        kernel.softcap,
        kernel.readable,
        spec.chunk,
        spec.product_dtype,
        " ".join(wrt),
    )
    return losses, tuple(grads)


def opaque_loss(operands: LinearOperands, denominator: Denominator, spec: LinearSpec) -> Tensor:
    """The loss with its gradients in plain reverse mode."""
    wrt = tuple(name for name in NAMES if (x := getattr(operands, name)) is not None and x.requires_grad)
    if not (wrt and torch.is_grad_enabled()):
        return reduce(opaque_row_losses(operands, None, spec)[0], denominator, spec.loss)
    loss: Tensor = OpaqueLinear.apply(*operands, denominator, spec, wrt)
    return loss


class OpaqueLinear(Function):
    """`unixent_torch.linear.autograd.ReverseLinear`, its pass an operator and without looking at values."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        operands, (denominator, spec, wrt) = LinearOperands(*inputs[:6]), inputs[6:]
        loss, scale, early = spec.loss, None, ()
        if not forms_gradient_late(operands, spec, wrt):
            one = torch.ones((), dtype=loss.kernel.acc_dtype, device=operands.hidden.device)
            scale, early = grad_scale_of(one, denominator, loss), wrt
        losses, grads = opaque_row_losses(operands, scale, spec, early)
        ctx.spec, ctx.denominator, ctx.wrt = spec, denominator, wrt
        ctx.save_for_backward(*operands, *grads)
        return reduce(losses, denominator, loss)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        spec, wrt, saved = ctx.spec, ctx.wrt, ctx.saved_tensors
        operands, grads = LinearOperands(*saved[:6]), saved[6:]
        if grads:
            grads = tuple(scaled(name, grad, grad_output) for name, grad in zip(wrt, grads, strict=True))
        else:
            scale = expand_to(grad_scale_of(grad_output, ctx.denominator, spec.loss), operands.hidden.shape[:-1])
            grads = opaque_row_losses(operands, scale.contiguous(), spec, wrt)[1]
        return in_order(wrt, cast_like(wrt, grads, operands), 5, NAMES)
