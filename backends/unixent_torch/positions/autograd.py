"""Statistics under plain reverse mode: nothing of the size of the logits is kept but the logits themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch.logits.autograd import is_transformed
from unixent_torch.positions.kernel import row_statistics
from unixent_torch.positions.rows import Columns, StatsSpec, row_gradient, row_stats


class RowStatistics(Function):
    """The outputs asked for, each P or P + (K,) in the accumulation dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Columns, spec: StatsSpec) -> tuple[Tensor, ...]:
        ctx.spec = spec
        ctx.set_materialize_grads(False)
        stats, _, kept = row_statistics(x, columns, spec, keep=True)
        ctx.save_for_backward(x, *columns, kept)
        ctx.mark_non_differentiable(*[each for name, each in stats.items() if name not in spec.graded])
        return tuple(stats.values())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        x, *saved, kept = ctx.saved_tensors
        columns, spec = Columns(*saved), ctx.spec
        upstream = spec.upstream(grad_outputs)
        if not upstream:
            return None, None, None
        if torch.is_grad_enabled() or any(map(is_transformed, upstream.values())):
            return row_gradient(x, upstream, columns, spec).to(x.dtype), None, None
        return row_statistics(x, columns, spec.of(()), upstream, kept=kept).gradient, None, None


class TracedStatistics(Function):
    """The same recorded: a compiler is given the gradient by its formula, rather than left to differentiate the
    statistics, of which inductor (torch 2.13) makes a wrong gradient where many are asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Columns, spec: StatsSpec) -> tuple[Tensor, ...]:
        ctx.spec = spec
        ctx.set_materialize_grads(False)
        stats = row_stats(x, columns, spec)
        ctx.save_for_backward(x, *columns)
        ctx.mark_non_differentiable(*[each for name, each in stats.items() if name not in spec.graded])
        return tuple(stats.values())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        x, *saved = ctx.saved_tensors
        upstream = ctx.spec.upstream(grad_outputs)
        if not upstream:
            return None, None, None
        return row_gradient(x, upstream, Columns(*saved), ctx.spec).to(x.dtype), None, None
