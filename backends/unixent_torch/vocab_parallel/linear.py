"""The fused linear form with its classifier split by classes: two all-reduces a chunk, one more for the hidden states.

Every process of a model group holds the same hidden states and makes the logits of its own classes. The gradient of the
hidden states is a sum over the classes of all of them: it is formed in the forward pass and summed there, so that each
process gets the whole one and the backward pass communicates nothing. Where the upstream gradient of each position
comes only then (``reduction="none"``), it scales that gradient position by position, and the classifier's is formed
from the statistics of the forward pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch import compat
from unixent_torch.collectives import LocalShard, all_reduce
from unixent_torch.linear.autograd import NoDoubleBackward, cast_like, only_plain_backward
from unixent_torch.linear.chunks import NAMES, LinearOperands, LinearPass, LinearSpec
from unixent_torch.logits.autograd import is_transformed
from unixent_torch.logits.gradient import in_order, needed, scaled
from unixent_torch.logits.reduction import expand_to, grad_scale_of, reduce
from unixent_torch.vocab_parallel.gradients import shard_gradients
from unixent_torch.vocab_parallel.statistics import ShardStats, shard_losses


def shard_linear_losses(
    operands: LinearOperands,
    grad_scale: Tensor | float | None,
    spec: LinearSpec,
    shard: LocalShard,
    wrt: tuple[str, ...] = (),
    stats: ShardStats | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], ShardStats]:
    """`unixent_torch.linear.chunks.linear_row_losses` for this process's classes, and the statistics of all processes.

    With ``stats`` nothing is communicated and no loss comes out; "hidden" is then not to be asked for.
    """
    # As many chunks on every process, however many classes it holds.
    chunk = spec.chunk_of(operands.hidden, shard.max_local_classes)
    with torch.autocast(operands.hidden.device.type, enabled=False):
        work = _ShardLinearPass(operands, replace(spec, chunk=chunk), wrt, shard, stats)
        losses, grads = work.run(grad_scale)
        if "hidden" in wrt:
            by_name = dict(zip(wrt, grads, strict=True))
            by_name["hidden"] = all_reduce(by_name["hidden"], shard.model_groups, "sum")
            grads = tuple(by_name.values())
        return losses, grads, work.stats()


class _ShardLinearPass(LinearPass):
    """The loop over chunks, each of them with statistics of all processes."""

    def __init__(
        self,
        operands: LinearOperands,
        spec: LinearSpec,
        wrt: tuple[str, ...],
        shard: LocalShard,
        stats: ShardStats | None,
    ) -> None:
        super().__init__(operands, spec, wrt)
        self._shard, self._given_stats = shard, stats
        self._chunk_stats: list[ShardStats] = []

    def stats(self) -> ShardStats:
        """The statistics of all positions."""
        if self._given_stats is not None:
            return self._given_stats
        if not self._chunk_stats:
            self._row_losses(self._hidden.new_empty((0, self._classes), dtype=self._acc_dtype), slice(0, 0), None)
        return ShardStats(*(torch.cat(columns) for columns in zip(*self._chunk_stats, strict=True)))

    def _row_losses(self, block: Tensor, rows: slice, grad_scale: Tensor | float | None) -> Tensor:
        kernel, shard, weight, wrt = self._spec.loss.kernel, self._shard, self._operands.weight, self._kernel_wrt
        position_weight = None if self._position_weight is None else self._position_weight[rows]
        operands = (block, self._target[rows], weight, position_weight)
        if self._given_stats is None:
            losses, stats = shard_losses(*operands, kernel, shard)
            self._chunk_stats.append(stats)
        else:
            losses = block.new_zeros(len(block))
            stats = ShardStats(*(column[rows] for column in self._given_stats))
        if wrt:
            if isinstance(grad_scale, Tensor) and grad_scale.ndim:
                grad_scale = grad_scale[rows]
            out = tuple([block if name == "logits" else self._grads["target"][rows] for name in wrt])
            shard_gradients(*operands, grad_scale, stats, kernel, shard, wrt, out)
        return losses


class ReverseShardLinear(Function):
    """The loss under plain reverse mode, once."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        operands, (denominator, spec, shard) = LinearOperands(*inputs[:6]), inputs[6:]
        loss, wrt = spec.loss, needed(ctx, NAMES)
        # The gradient of probabilities is as large as the logits: it is formed when it is asked for.
        late = loss.kept_axes > 0 or "target" in wrt
        early = tuple(name for name in wrt if name == "hidden") if late else wrt
        scale = None if loss.kept_axes else grad_scale_of(1.0, denominator, loss)
        losses, grads, stats = shard_linear_losses(operands, scale, spec, shard, early)
        ctx.spec, ctx.denominator, ctx.shard, ctx.wrt, ctx.late = spec, denominator, shard, wrt, late
        ctx.save_for_backward(*operands, *stats, *grads)
        return reduce(losses, denominator, loss)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        if is_transformed(grad_output):
            raise only_plain_backward()
        with torch.no_grad():
            grads = _gradients(ctx, grad_output.detach())
        if torch.is_grad_enabled():
            inputs = (only_plain_backward(), grad_output, *ctx.saved_tensors[:6])
            grads = tuple(None if grad is None else NoDoubleBackward.apply(grad, *inputs) for grad in grads)
        return grads


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """What the forward pass formed, times the upstream gradient, in the order of the function's inputs."""
    saved, wrt, spec, num_stats = ctx.saved_tensors, ctx.wrt, ctx.spec, len(ShardStats._fields)
    operands, stats = LinearOperands(*saved[:6]), ShardStats(*saved[6 : 6 + num_stats])
    formed = saved[6 + num_stats :]
    if not ctx.late:
        in_place = not compat.keeps_graph()
        pairs = zip(wrt, formed, strict=True)
        by_name = {name: scaled(name, grad, grad_output, in_place) for name, grad in pairs}
    else:
        shape = operands.hidden.shape[:-1]
        scale = expand_to(grad_scale_of(grad_output, ctx.denominator, spec.loss), shape)
        rest = tuple(name for name in wrt if name != "hidden")
        grads = shard_linear_losses(operands, scale, spec, ctx.shard, rest, stats)[1] if rest else ()
        by_name = dict(zip(rest, grads, strict=True))
        if formed:
            by_name["hidden"] = formed[0] * expand_to(grad_output, shape).unsqueeze(-1)
            if operands.position_weight is not None:
                by_name["hidden"].masked_fill_((operands.position_weight == 0).unsqueeze(-1), 0)
    names = tuple(by_name)
    return in_order(names, cast_like(names, tuple(by_name.values()), operands), 5, NAMES)
