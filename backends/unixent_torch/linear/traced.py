"""The fused linear form for tracers: one opaque operator, so that a compiled call holds no more logits than others.

A compiler fuses the loss into a pass or two by itself, but not across a matrix product: of a plain composition it would
keep all logits and their gradient. The operator is the eager pass, run inside the compiled graph; an exported program
has its derivative as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unixent.errors import BackendError
from unixent.logit_transform import LogitTransform
from unixent_torch.kernel import KernelSpec
from unixent_torch.linear.autograd import NoDoubleBackward, cast_like, forms_gradient_late
from unixent_torch.linear.chunks import NAMES, LinearOperands, LinearSpec, linear_row_losses
from unixent_torch.logits.gradient import in_order, needed, scaled
from unixent_torch.logits.reduction import Denominator, LossSpec, expand_to, grad_scale_of, reduce


def _read(arguments: tuple[Any, ...]) -> tuple[LinearOperands, Denominator, Tensor | None, LinearSpec, tuple[str, ...]]:
    """The operator's arguments as `opaque_loss_and_grads` took them."""
    *tensors, denominator, grad_output = arguments[:8]
    acc_dtype, label_smoothing, z_loss, softcap, inverse_temperature, readable, *rest = arguments[8:]
    kept_axes, empty, chunk, product_dtype, wrt = rest
    transform = LogitTransform(softcap, inverse_temperature)
    loss = LossSpec(KernelSpec(acc_dtype, label_smoothing, z_loss, transform, readable), kept_axes, empty)
    spec = LinearSpec(loss, chunk, product_dtype)
    return LinearOperands(*tensors), denominator, grad_output, spec, tuple(wrt.split())


def _run(*arguments: Any) -> list[Tensor]:
    operands, denominator, grad_output, spec, wrt = _read(arguments)
    loss, scale = spec.loss, None
    if wrt:
        scale = grad_scale_of(1.0 if grad_output is None else grad_output, denominator, loss)
        scale = expand_to(scale, operands.hidden.shape[:-1]) if isinstance(scale, Tensor) else scale
    losses, grads = linear_row_losses(operands, scale, spec, wrt)
    return [reduce(losses, denominator, loss, loss.kernel.readable), *grads]


_operator = torch.library.custom_op(
    "unixent::linear_cross_entropy",
    _run,
    mutates_args=(),
    schema=(
        "(Tensor hidden, Tensor classifier, Tensor? bias, Tensor target, Tensor? weight, Tensor? position_weight, "
        "Tensor? denominator, Tensor? grad_output, ScalarType acc_dtype, float label_smoothing, float z_loss, "
        "float? softcap, float inverse_temperature, bool readable, int kept_axes, float empty, int? chunk, "
        "ScalarType? product_dtype, str wrt) -> Tensor[]"
    ),
)


@_operator.register_fake
def _shapes(*arguments: Any) -> list[Tensor]:
    operands, _, _, spec, wrt = _read(arguments)
    acc_dtype, positions = spec.loss.kernel.acc_dtype, operands.hidden.shape[:-1]
    results = [operands.hidden.new_empty(positions[: spec.loss.kept_axes], dtype=acc_dtype)]
    for name in wrt:
        source = getattr(operands, name)
        results.append(source.new_empty(source.shape, dtype=source.dtype if name == "target" else acc_dtype))
    return results


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.options = inputs[8:]
    ctx.save_for_backward(*inputs[:7], *output[1:])


def _backward(ctx: Any, output_grads: list[Tensor | None]) -> Any:
    operands, denominator, _, spec, formed = _read((*ctx.saved_tensors[:7], None, *ctx.options))
    grad_output, wrt = output_grads[0], needed(ctx, NAMES)
    if grad_output is None:
        return (None,) * 19
    with torch.no_grad():
        if set(wrt) <= set(formed):
            early = dict(zip(formed, ctx.saved_tensors[7:], strict=True))
            grads = tuple([scaled(name, early[name], grad_output) for name in wrt])
        else:
            grads = opaque_loss_and_grads(operands, denominator, grad_output.contiguous(), spec, wrt)[1]
        grads = cast_like(wrt, grads, operands)
    if torch.is_grad_enabled():
        error = BackendError(
            "linear_cross_entropy: an exported program has no second derivative; got create_graph=True"
        )
        grads = tuple([NoDoubleBackward.apply(grad, error, grad_output, *operands) for grad in grads])
    return in_order(wrt, grads, 15, NAMES)


_operator.register_autograd(_backward, setup_context=_save)


def opaque_loss_and_grads(
    operands: LinearOperands,
    denominator: Denominator,
    grad_output: Tensor | None,
    spec: LinearSpec,
    wrt: tuple[str, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The reduced loss and its gradients for an upstream one, None for 1, as one operator of the graph."""
    kernel = spec.loss.kernel
    if denominator is not None and not isinstance(denominator, Tensor):
        denominator = torch.scalar_tensor(denominator, dtype=kernel.acc_dtype, device=operands.hidden.device)
    loss, *grads = _operator(
        *operands,
        denominator,
        grad_output,
        kernel.acc_dtype,
        kernel.label_smoothing,
        kernel.z_loss,
        *kernel.transform,
        kernel.readable,
        spec.loss.kept_axes,
        spec.loss.empty,
        spec.chunk,
        spec.product_dtype,
        " ".join(wrt),
    )
    return loss, tuple(grads)


def opaque_loss(operands: LinearOperands, denominator: Denominator, spec: LinearSpec) -> Tensor:
    """The loss, formed together with the gradients that are known to be asked for; others are formed when they are."""
    wrt = tuple(name for name in NAMES if (x := getattr(operands, name)) is not None and x.requires_grad)
    late = not torch.is_grad_enabled() or forms_gradient_late(operands, spec, wrt)
    return opaque_loss_and_grads(operands, denominator, None, spec, () if late else wrt)[0]
