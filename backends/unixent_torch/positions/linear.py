"""Statistics of hidden states: a chunk of logits at a time, formed anew for the gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch.collectives import all_reduce
from unixent_torch.linear.autograd import NoDoubleBackward, cast_like, only_plain_backward
from unixent_torch.linear.chunks import LinearOperands, LinearPass, LinearSpec, without_autocast
from unixent_torch.logits.autograd import is_transformed
from unixent_torch.logits.gradient import in_order, needed
from unixent_torch.positions.kernel import row_statistics
from unixent_torch.positions.rows import Columns, RowResults, StatsSpec, row_gradient, row_stats

#: What gradients may be asked of, in the order of the operands.
NAMES = ("hidden", "classifier", "bias")


def linear_stats(
    operands: LinearOperands,
    columns: Columns,
    spec: StatsSpec,
    chunked: LinearSpec,
    upstream: dict[str, Tensor] | None = None,
    wrt: tuple[str, ...] = (),
    kept: Tensor | None = None,
) -> tuple[dict[str, Tensor], tuple[Tensor, ...], Tensor | None]:
    """The outputs, as `row_statistics` has them, the gradients for ``wrt``, in the accumulation dtype, and, where
    classes are split, what it keeps of the rows."""
    positions, shard = operands.hidden.shape[:-1], spec.shard
    count, axes = positions.numel(), len(positions)
    flat, parts, keep = columns.flattened(count), [], shard is not None and kept is None
    if shard is not None:
        # As many chunks on every process, however many classes it holds.
        chunked = replace(chunked, chunk=chunked.chunk_of(operands.hidden, shard.max_local_classes))
    above = {name: each.reshape(count, *each.shape[axes:]) for name, each in (upstream or {}).items()}
    with without_autocast(operands.hidden.device):
        work = LinearPass(operands, chunked, wrt)
        for rows, block in work.chunks():
            here = {name: each[rows] for name, each in above.items()} if wrt else None
            known = None if kept is None else kept[:, rows]
            parts.append(row_statistics(block, flat.rows(rows), spec, here, block, keep, known))
        if not parts:
            none = whole_logits(operands, chunked).reshape(0, len(operands.classifier))
            parts.append(RowResults(row_stats(none, flat, spec), None, None))
        grads = work.gradients()
        if shard is not None and "hidden" in wrt:
            by_name = dict(zip(wrt, grads, strict=True))
            grads = tuple((by_name | {"hidden": all_reduce(by_name["hidden"], shard.model_groups, "sum")}).values())
    joined = {name: torch.cat([part.outputs[name] for part in parts]) for name in spec.outputs}
    of_rows = [part.kept for part in parts if part.kept is not None]
    kept = torch.cat(of_rows, 1) if of_rows else None
    return {name: each.view((*positions, *each.shape[1:])) for name, each in joined.items()}, grads, kept


class LinearStatistics(Function):
    """The outputs under plain reverse mode: nothing is kept but the operands, and of split classes once."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        operands, (columns, ctx.spec, ctx.chunked) = LinearOperands(*inputs[:6]), inputs[6:]
        ctx.set_materialize_grads(False)
        stats, _, kept = linear_stats(operands, columns, ctx.spec, ctx.chunked)
        ctx.save_for_backward(*operands, *columns, kept)
        ctx.mark_non_differentiable(*[each for name, each in stats.items() if name not in ctx.spec.graded])
        return tuple(stats.values())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        saved, spec, chunked, wrt = ctx.saved_tensors, ctx.spec, ctx.chunked, needed(ctx, NAMES)
        operands, columns, kept = LinearOperands(*saved[:6]), Columns(*saved[6:-1]), saved[-1]
        upstream = spec.upstream(grad_outputs)
        if not upstream:
            return (None,) * 9
        transformed, is_split = any(map(is_transformed, upstream.values())), spec.shard is not None
        if transformed and is_split:
            raise only_plain_backward()
        if transformed or (torch.is_grad_enabled() and not is_split):
            grads = composed_gradients(operands, columns, spec, chunked, upstream, wrt)
        else:
            with torch.no_grad():
                grads = linear_stats(operands, columns, spec.of(()), chunked, upstream, wrt, kept)[1]
        grads = cast_like(wrt, grads, operands)
        if is_split and torch.is_grad_enabled():
            inputs = (only_plain_backward(), *upstream.values(), *operands)
            grads = tuple(NoDoubleBackward.apply(grad, *inputs) for grad in grads)
        return in_order(wrt, grads, 6, NAMES)


def whole_logits(operands: LinearOperands, spec: LinearSpec) -> Tensor:
    """All logits, for transforms, in the accumulation dtype."""
    bias = None if operands.bias is None else operands.bias.to(spec.loss.kernel.acc_dtype)
    with without_autocast(operands.hidden.device):
        states = _zero_inactive(spec.widen(operands.hidden), operands)
        return torch.nn.functional.linear(states, spec.widen(operands.classifier), bias)


def _zero_inactive(x: Tensor, operands: LinearOperands) -> Tensor:
    """x, one row a position, with 0 where the position is inactive: 0 times a NaN would reach a gradient."""
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
    hidden, classifier = _zero_inactive(chunked.widen(operands.hidden), operands), chunked.widen(operands.classifier)
    flat, states = grad.reshape(-1, grad.shape[-1]), hidden.reshape(-1, hidden.shape[-1])
    grads: dict[str, Tensor] = {}
    with without_autocast(operands.hidden.device):
        if "hidden" in wrt:
            grads["hidden"] = _zero_inactive(grad @ classifier, operands)
        if "classifier" in wrt:
            grads["classifier"] = flat.t() @ states
        if "bias" in wrt:
            grads["bias"] = flat.sum(0)
    return tuple(grads[name] for name in wrt)
