"""The loss of compiled programs: the native pass, or the Triton programs, as operators of the graph.

On the host that takes half the time of what a compiler generates of the composition, as long as a row is long; for CUDA
tensors it keeps to two reads of the logits and a write. Short rows stay a composition, which is fused with what
surrounds it; so does what is exported, and what is differentiated twice.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from unixent.errors import OptionError
from unixent.logit_transform import LogitTransform
from unixent_native import MAX_AXES, load
from unixent_torch.kernel import KernelSpec, row_losses, triton
from unixent_torch.kernel.triton.columns import RowColumns, num_columns
from unixent_torch.logits.gradient import Operands, RowGradient, in_order, needed

_MIN_CLASSES = 2048
# Asked here, since the compiler would look into the loader.
_has_library = False
with suppress(OptionError):  # raised again by the first call
    _has_library = load() is not None

_OPERANDS = "Tensor x, Tensor target, Tensor? weight, Tensor? position_weight"
_OPTIONS = "ScalarType acc_dtype, float label_smoothing, float z_loss, float? softcap, float inverse_temperature"
_NUM_OPTIONS = 5


def takes_operator(x: Tensor, target: Tensor, spec: KernelSpec) -> bool:
    """Whether an operator serves logits that are being compiled; a subclass may know torch's own alone."""
    if type(x) not in (Tensor, Parameter) or not torch.compiler.is_compiling():
        return False
    if not (triton.serves(spec, x, target) or (_has_library and x.is_cpu and x.ndim <= MAX_AXES + 1)):
        return False
    return not getattr(torch.compiler, "is_exporting", lambda: True)() and bool(x.shape[-1] >= _MIN_CLASSES)


def opaque_row_losses(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`unixent_torch.kernel.row_losses` as operators of the graph."""
    operands = (x, target, weight, position_weight)
    if not triton.serves(spec, x, target):
        losses, *grads = _pass(*operands, grad_scale, *_options(spec), " ".join(wrt))
        return losses, tuple(grads)
    losses, columns, pivot = _statistics(*operands, *_options(spec))
    if not wrt:
        return losses, ()
    return losses, tuple(_gradients(*operands, grad_scale, columns, pivot, *_options(spec), " ".join(wrt)))


def _options(spec: KernelSpec) -> tuple[Any, ...]:
    return spec.acc_dtype, spec.label_smoothing, spec.z_loss, *spec.transform


def _spec(options: tuple[Any, ...], readable: bool) -> KernelSpec:
    acc_dtype, label_smoothing, z_loss, softcap, inverse_temperature = options
    return KernelSpec(acc_dtype, label_smoothing, z_loss, LogitTransform(softcap, inverse_temperature), readable)


def _like(operands: tuple[Tensor, Tensor], wrt: str) -> list[Tensor]:
    return [torch.empty_like(operands[name == "target"]) for name in wrt.split()]


def _run_pass(*inputs: Any) -> list[Tensor]:
    x, target, weight, position_weight, grad_scale, *options, wrt = inputs
    spec = _spec(tuple(options), True)
    losses, grads = row_losses(x, target, weight, position_weight, grad_scale, spec, tuple(wrt.split()))
    return [losses, *grads]


_pass = torch.library.custom_op(
    "unixent::cross_entropy",
    _run_pass,
    mutates_args=(),
    schema=f"({_OPERANDS}, Tensor? grad_scale, {_OPTIONS}, str wrt) -> Tensor[]",
)


@_pass.register_fake
def _(x: Tensor, target: Tensor, *others: Any) -> list[Tensor]:
    return [x.new_empty(x.shape[:-1], dtype=others[3]), *_like((x, target), others[-1])]


def _run_statistics(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    target, spec = inputs[1], _spec(inputs[-_NUM_OPTIONS:], False)
    losses, (columns, pivot) = triton.row_statistics(*inputs[:-_NUM_OPTIONS], spec)
    # What an operator returns must not share memory with what it was given.
    return losses, columns, pivot if num_columns(target, spec) == 5 else pivot.new_empty(0)


_statistics = torch.library.custom_op(
    "unixent::row_statistics",
    _run_statistics,
    mutates_args=(),
    schema=f"({_OPERANDS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)


@_statistics.register_fake
def _(x: Tensor, target: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape, quantities = x.shape[:-1], num_columns(target, _spec(others[-_NUM_OPTIONS:], False))
    pivots = shape.numel() if quantities == 5 else 0
    columns = x.new_empty((quantities, shape.numel()), dtype=torch.float32)
    return x.new_empty(shape, dtype=torch.float32), columns, x.new_empty(pivots, dtype=torch.int64)


def _run_gradients(*inputs: Any) -> list[Tensor]:
    *operands, grad_scale, columns, pivot = inputs[: -_NUM_OPTIONS - 1]
    pivot = pivot if pivot.numel() else operands[1].reshape(-1).contiguous()
    spec, rows = _spec(inputs[-_NUM_OPTIONS - 1 : -1], False), RowColumns(columns, pivot)
    return list(triton.row_gradients(*operands, grad_scale, spec, rows, tuple(inputs[-1].split())))


_gradients = torch.library.custom_op(
    "unixent::row_gradients",
    _run_gradients,
    mutates_args=(),
    schema=f"({_OPERANDS}, Tensor? grad_scale, Tensor columns, Tensor pivot, {_OPTIONS}, str wrt) -> Tensor[]",
)


@_gradients.register_fake
def _(x: Tensor, target: Tensor, *others: Any) -> list[Tensor]:
    return _like((x, target), others[-1])


def _second_order(ctx: Any, operands: Operands, scale: Tensor) -> tuple[Tensor, ...]:
    """The gradient of a compiler that runs the operator as it is, so that it can be differentiated."""
    grads: tuple[Tensor, ...] = RowGradient.apply(*operands, scale, ctx.spec, needed(ctx))
    return grads


def _save_pass(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.spec = _spec(inputs[5 : 5 + _NUM_OPTIONS], True)
    ctx.save_for_backward(*inputs[:4])


def _pass_backward(ctx: Any, grad_outputs: list[Tensor]) -> Any:
    (x, target, weight, position_weight), scale, wrt = ctx.saved_tensors, grad_outputs[0], needed(ctx)
    if torch.is_grad_enabled():
        grads = _second_order(ctx, (x, target, weight, position_weight), scale)
    else:
        grads = opaque_row_losses(x, target, weight, position_weight, scale, ctx.spec, wrt)[1]
    return in_order(wrt, grads, 9)


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.spec = _spec(inputs[4:], False)
    ctx.save_for_backward(*inputs[:4], *output[1:])


def _statistics_backward(ctx: Any, scale: Tensor, *_: Any) -> Any:
    *operands, columns, pivot = ctx.saved_tensors
    wrt = needed(ctx)
    if torch.is_grad_enabled():
        grads = _second_order(ctx, tuple(operands), scale)
    else:
        grads = tuple(_gradients(*operands, scale, columns, pivot, *_options(ctx.spec), " ".join(wrt)))
    return in_order(wrt, grads, 7)


_pass.register_autograd(_pass_backward, setup_context=_save_pass)
_statistics.register_autograd(_statistics_backward, setup_context=_save_statistics)
