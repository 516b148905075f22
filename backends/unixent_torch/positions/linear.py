"""Statistics of hidden states: a chunk of logits at a time, formed anew for the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch.linear.autograd import cast_like
from unixent_torch.linear.chunks import LinearOperands, LinearPass, LinearSpec, without_autocast
from unixent_torch.logits.autograd import is_transformed
from unixent_torch.logits.gradient import in_order, needed
from unixent_torch.positions.kernel import row_statistics
from unixent_torch.positions.rows import Columns, StatsSpec, row_gradient, row_stats

_NAMES = ("hidden", "classifier", "bias")


def linear_stats(
    operands: LinearOperands,
    columns: Columns,
    spec: StatsSpec,
    chunked: LinearSpec,
    upstream: dict[str, Tensor] | None = None,
    wrt: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The outputs, as `row_statistics` has them, and the gradients for ``wrt``, in the accumulation dtype."""
    positions = operands.hidden.shape[:-1]
    count, axes = positions.numel(), len(positions)
    flat, parts = columns.flattened(count), []
    above = {name: each.reshape(count, *each.shape[axes:]) for name, each in (upstream or {}).items()}
    with without_autocast(operands.hidden.device):
        work = LinearPass(operands, chunked, wrt)
        for rows, block in work.chunks():
            here = {name: each[rows] for name, each in above.items()} if wrt else None
            parts.append(row_statistics(block, flat.rows(rows), spec, here, block).outputs)
        if not parts:
            parts.append(row_stats(whole_logits(operands, chunked), columns, spec))
    joined = {name: torch.cat([part[name] for part in parts]) for name in spec.outputs}
    return {name: each.view(*positions, *each.shape[1:]) for name, each in joined.items()}, work.gradients()


class LinearStatistics(Function):
    """The outputs under plain reverse mode: nothing is kept but the operands."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        operands, (columns, ctx.spec, ctx.chunked) = LinearOperands(*inputs[:6]), inputs[6:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, *columns)
        stats, _ = linear_stats(operands, columns, ctx.spec, ctx.chunked)
        ctx.mark_non_differentiable(*[each for name, each in stats.items() if name not in ctx.spec.graded])
        return tuple(stats.values())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        saved, spec, chunked, wrt = ctx.saved_tensors, ctx.spec, ctx.chunked, needed(ctx, _NAMES)
        operands, columns = LinearOperands(*saved[:6]), Columns(*saved[6:])
        upstream = spec.upstream(grad_outputs)
        if not upstream:
            return (None,) * 9
        if torch.is_grad_enabled() or any(map(is_transformed, upstream.values())):
            grads = composed_gradients(operands, columns, spec, chunked, upstream, wrt)
        else:
            grads = linear_stats(operands, columns, spec.of(()), chunked, upstream, wrt)[1]
        return in_order(wrt, cast_like(wrt, grads, operands), 6, _NAMES)


def whole_logits(operands: LinearOperands, spec: LinearSpec) -> Tensor:
    """All logits, for transforms, in the accumulation dtype."""
    bias = None if operands.bias is None else operands.bias.to(spec.loss.kernel.acc_dtype)
    with without_autocast(operands.hidden.device):
        states = _counted(spec.widen(operands.hidden), operands)
        return torch.nn.functional.linear(states, spec.widen(operands.classifier), bias)


def _counted(x: Tensor, operands: LinearOperands) -> Tensor:
    """x, one row a position, with 0 where the position does not count: 0 times a NaN would reach a gradient."""
    v = operands.position_weight
    return x if v is None else x.masked_fill((v == 0).unsqueeze(-1), 0)


def composed_gradients(
    operands: LinearOperands,
    columns: Columns,
    spec: StatsSpec,
    chunked: LinearSpec,
    upstream: dict[str, Tensor],
    wrt: tuple[str, ...],
) -> tuple[Tensor, ...]:
    """The gradients as functions of the operands and the upstream gradients, with all logits at a time."""
    grad = row_gradient(whole_logits(operands, chunked), upstream, columns, spec)
    hidden, classifier = _counted(chunked.widen(operands.hidden), operands), chunked.widen(operands.classifier)
    flat, states = grad.reshape(-1, grad.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
    grads: dict[str, Tensor] = {}
    with without_autocast(operands.hidden.device):
        if "hidden" in wrt:
            grads["hidden"] = _counted(grad @ classifier, operands)
        if "classifier" in wrt:
            grads["classifier"] = flat.t() @ states
        if "bias" in wrt:
            grads["bias"] = flat.sum(0)
    return tuple(grads[name] for name in wrt)
