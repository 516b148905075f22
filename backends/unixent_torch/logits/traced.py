"""The loss of compiled programs in host memory: the native pass as one operator of the graph.

It takes half the time of what a compiler generates of the composition, as long as a row is long. Short rows stay a
composition, which is fused with what surrounds it; so does what is exported, and what is differentiated twice.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from unixent.errors import OptionError
from unixent.semantics import LogitTransform
from unixent_native import MAX_AXES, load
from unixent_torch.kernel import KernelSpec, row_losses
from unixent_torch.logits.gradient import RowGradient, in_order, needed

_MIN_CLASSES = 2048
# Asked here, since the compiler would look into the loader.
_has_library = False
with suppress(OptionError):  # raised again by the first call
    _has_library = load() is not None


def takes_operator(x: Tensor) -> bool:
    """Whether the operator serves logits that are being compiled; a subclass may know torch's own alone."""
    if not (
        _has_library
        and type(x) in (Tensor, Parameter)
        and x.is_cpu
        and x.ndim <= MAX_AXES + 1
        and torch.compiler.is_compiling()
    ):
        return False
    return not getattr(torch.compiler, "is_exporting", lambda: True)() and bool(x.shape[-1] >= _MIN_CLASSES)


def _run(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | None,
    acc_dtype: torch.dtype,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    inverse_temperature: float,
    wrt: str,
) -> list[Tensor]:
    spec = KernelSpec(acc_dtype, label_smoothing, z_loss, LogitTransform(softcap, inverse_temperature), True)
    losses, grads = row_losses(x, target, weight, position_weight, grad_scale, spec, tuple(wrt.split()))
    return [losses, *grads]


_operator = torch.library.custom_op(
    "unixent::cross_entropy",
    _run,
    mutates_args=(),
    schema=(
        "(Tensor x, Tensor target, Tensor? weight, Tensor? position_weight, Tensor? grad_scale, ScalarType acc_dtype, "
        "float label_smoothing, float z_loss, float? softcap, float inverse_temperature, str wrt) -> Tensor[]"
    ),
)


@_operator.register_fake
def _shapes(x: Tensor, target: Tensor, *others: Any) -> list[Tensor]:
    grads = [torch.empty_like(x if name == "logits" else target) for name in others[-1].split()]
    return [x.new_empty(x.shape[:-1], dtype=others[3]), *grads]


def opaque_row_losses(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`unixent_torch.kernel.row_losses` as one operator of the graph."""
    options = (spec.acc_dtype, spec.label_smoothing, spec.z_loss, *spec.transform)
    losses, *grads = _operator(x, target, weight, position_weight, grad_scale, *options, " ".join(wrt))
    return losses, tuple(grads)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *operands, _, acc_dtype, label_smoothing, z_loss, softcap, inverse_temperature, _ = inputs
    ctx.spec = KernelSpec(acc_dtype, label_smoothing, z_loss, LogitTransform(softcap, inverse_temperature), True)
    ctx.save_for_backward(*operands)


def _backward(ctx: Any, grad_outputs: list[Tensor]) -> Any:
    x, target, weight, position_weight = ctx.saved_tensors
    wrt, scale = needed(ctx), grad_outputs[0]
    if torch.is_grad_enabled():  # of a compiler that runs the operator as it is
        grads = RowGradient.apply(x, target, weight, position_weight, scale, ctx.spec, wrt)
    else:
        grads = opaque_row_losses(x, target, weight, position_weight, scale, ctx.spec, wrt)[1]
    return in_order(wrt, grads, 9)


_operator.register_autograd(_backward, setup_context=_save)
