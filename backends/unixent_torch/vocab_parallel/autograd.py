"""The loss of split classes as functions that autograd can differentiate, without communication in the backward pass.

As with `unixent_torch.logits.autograd`, a scalar loss has its gradient formed in the forward pass where reverse mode
asks for it, and `TransformedShardLoss` is the same function for torch.func and forward mode. A derivative of the
derivative needs sums over the classes of all processes: one all-reduce.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent.errors import BackendError
from unixent_torch import compat
from unixent_torch.collectives import LocalShard, sum_over_processes
from unixent_torch.logits.autograd import is_transformed, save_with_denominator, saved_with_denominator
from unixent_torch.logits.gradient import (
    Operands,
    given_tangents,
    in_order,
    inner,
    needed,
    scaled,
)
from unixent_torch.logits.reduction import Denominator, LossSpec, expand_to, grad_scale_of, reduce
from unixent_torch.vocab_parallel.gradients import shard_gradients
from unixent_torch.vocab_parallel.hvp import shard_hvp
from unixent_torch.vocab_parallel.statistics import ShardStats, shard_losses

_NUM_STATS = len(ShardStats._fields)


class ReverseShardLoss(Function):
    """The loss under plain reverse mode."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        position_weight: Tensor | None,
        denominator: Denominator,
        spec: LossSpec,
        shard: LocalShard,
    ) -> Tensor:
        kernel, wrt = spec.kernel, needed(ctx)
        # A rounded gradient can't be scaled, and that of a probability is formed when it is asked for.
        early = spec.kept_axes == 0 and x.dtype == kernel.acc_dtype and wrt == ("logits",)
        operands = (x, target, weight, position_weight)
        losses, stats = shard_losses(*operands, kernel, shard)
        ctx.spec, ctx.shard, ctx.denominator = spec, shard, denominator
        grads: tuple[Tensor, ...] = ()
        if early:
            scale = grad_scale_of(1.0, denominator, spec)
            grads = shard_gradients(*operands, scale, stats, kernel, shard, wrt)
        ctx.save_for_backward(*operands, *stats, *grads)
        return reduce(losses, denominator, spec)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        spec, shard, wrt = ctx.spec, ctx.shard, needed(ctx)
        saved = ctx.saved_tensors
        columns, grads = saved[4 : 4 + _NUM_STATS], saved[4 + _NUM_STATS :]
        operands: Operands = saved[:4]
        scale = grad_scale_of(grad_output, ctx.denominator, spec)
        shape = operands[0].shape[:-1]
        if torch.is_grad_enabled() or is_transformed(grad_output):
            grads = ShardGradient.apply(*operands, expand_to(scale, shape), *columns, spec, shard, wrt)
        elif grads:
            grads = (scaled("logits", grads[0], grad_output, not compat.keeps_graph()),)
        else:
            stats = ShardStats(*columns)
            grads = shard_gradients(*operands, expand_to(scale, shape), stats, spec.kernel, shard, wrt)
        return in_order(wrt, grads, 5)


class TransformedShardLoss(Function):
    """The loss under every transform that torch has a rule for here, and the statistics as constants."""

    @staticmethod
    def forward(
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        position_weight: Tensor | None,
        denominator: Denominator,
        spec: LossSpec,
        shard: LocalShard,
    ) -> tuple[Tensor, ...]:
        losses, stats = shard_losses(x, target, weight, position_weight, spec.kernel, shard)
        return (reduce(losses, denominator, spec), *stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, denominator, ctx.spec, ctx.shard = inputs
        ctx.mark_non_differentiable(*output[1:])
        save_with_denominator(ctx, [*operands, *output[1:]], denominator)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, *_: Any) -> Any:
        if grad_output is None:
            return (None,) * 7
        saved, denominator = saved_with_denominator(ctx)
        wrt, shape = needed(ctx), saved[0].shape[:-1]
        scale = expand_to(grad_scale_of(grad_output, denominator, ctx.spec), shape)
        return in_order(wrt, ShardGradient.apply(*saved[:4], scale, *saved[4:], ctx.spec, ctx.shard, wrt), 5)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        saved, denominator = saved_with_denominator(ctx)
        spec, positions, along = ctx.spec, saved[0].shape[:-1], given_tangents(tangents)
        kept = spec.kept_axes
        one = torch.ones(positions[:kept], dtype=spec.kernel.acc_dtype, device=saved[0].device)
        scale = expand_to(grad_scale_of(one, denominator, spec), positions)
        grads = ShardGradient.apply(*saved[:4], scale, *saved[4:], spec, ctx.shard, tuple(along))
        change = inner(grads, along, one.dtype)
        if kept < len(positions):
            change = change.sum(tuple(range(kept, len(positions))))
        return (sum_over_processes(change, ctx.shard.model_groups), *(None,) * _NUM_STATS)


class TracedShardLoss(Function):
    """The loss for the compiler, which takes functions with a plain backward pass and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        position_weight: Tensor | None,
        denominator: Denominator,
        spec: LossSpec,
        shard: LocalShard,
    ) -> Tensor:
        losses, stats = shard_losses(x, target, weight, position_weight, spec.kernel, shard)
        ctx.spec, ctx.shard, ctx.wrt = spec, shard, needed(ctx)
        ctx.save_for_backward(x, target, weight, position_weight, denominator, *stats)
        return reduce(losses, denominator, spec)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        x, target, weight, position_weight, denominator, *columns = ctx.saved_tensors
        spec, shard, wrt = ctx.spec, ctx.shard, ctx.wrt
        scale, stats = expand_to(grad_scale_of(grad_output, denominator, spec), x.shape[:-1]), ShardStats(*columns)
        grads = shard_gradients(x, target, weight, position_weight, scale, stats, spec.kernel, shard, wrt)
        return in_order(wrt, grads, 5)


class ShardGradient(Function):
    """The gradient of ``sum(grad_scale * losses)`` at this process's classes, for each of ``wrt``."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        x, target, weight, position_weight, grad_scale, *columns, spec, shard, wrt = inputs
        stats = ShardStats(*columns)
        return shard_gradients(x, target, weight, position_weight, grad_scale, stats, spec.kernel, shard, wrt)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.spec, ctx.shard, ctx.wrt = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        saved, spec, shard = ctx.saved_tensors, ctx.spec, ctx.shard
        tangents = given_tangents(grad_outputs, ctx.wrt)
        if not tangents:
            return (None,) * (_NUM_STATS + 8)
        for_x, for_target = ShardHvp.apply(*saved, tangents.get("logits"), tangents.get("target"), spec, shard)
        for_scale = None
        if ctx.needs_input_grad[4]:
            ones = torch.ones_like(saved[4])
            unscaled = ShardGradient.apply(*saved[:4], ones, *saved[5:], spec, shard, tuple(tangents))
            for_scale = sum_over_processes(inner(unscaled, tangents, saved[4].dtype), shard.model_groups)
        return (
            for_x if ctx.needs_input_grad[0] else None,
            for_target if ctx.needs_input_grad[1] else None,
            None,
            None,
            for_scale,
            *(None,) * (_NUM_STATS + 3),
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        saved, spec, shard = ctx.saved_tensors, ctx.spec, ctx.shard
        for_x, for_target = ShardHvp.apply(*saved, tangents[0], tangents[1], spec, shard)
        change = {"logits": for_x, "target": for_target}
        grads = tuple(change[name] for name in ctx.wrt)
        if tangents[4] is None:
            return grads
        rescaled = ShardGradient.apply(*saved[:4], tangents[4], *saved[5:], spec, shard, ctx.wrt)
        return tuple(a + b for a, b in zip(grads, rescaled, strict=True))


class ShardHvp(Function):
    """The second derivative along tangents of logits and target; a third one is refused."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        x, target, weight, position_weight, grad_scale, *columns, x_tangent, target_tangent, spec, shard = inputs
        operands, tangents = (x, target, weight, position_weight), given_tangents((x_tangent, target_tangent))
        return shard_hvp(operands, grad_scale, ShardStats(*columns), spec.kernel, shard, tangents)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _no_third_derivative()

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _no_third_derivative()


def _no_third_derivative() -> BackendError:
    return BackendError("parallel: a loss whose classes are split has first and second derivatives; a third was asked")
