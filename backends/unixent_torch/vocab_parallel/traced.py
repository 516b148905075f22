"""The split loss for the compiler, which takes functions with a plain backward pass and nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from unixent_torch.logits.autograd import arranged, asked
from unixent_torch.logits.reduction import Denominator, factor, reduce, spread
from unixent_torch.vocab_parallel.autograd import SplitCall
from unixent_torch.vocab_parallel.statistics import Found, solve_split, split_gradients


class TracedSplit(Function):
    """`unixent_torch.vocab_parallel.autograd.EagerSplit`, its gradient formed in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        v: Tensor | None,
        denominator: Denominator,
        how: SplitCall,
    ) -> Tensor:
        losses, found = solve_split(x, target, weight, v, how.call.spec, how.parts)
        ctx.how, ctx.wrt = how, asked(ctx)
        ctx.save_for_backward(x, target, weight, v, denominator, *found)
        return reduce(losses, denominator, how.call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        x, target, weight, v, denominator, *columns = ctx.saved_tensors
        how, wrt = ctx.how, ctx.wrt
        f = spread(factor(upstream, denominator, how.call), x.shape[:-1])
        spec, parts = how.call.spec, how.parts
        return arranged(wrt, split_gradients(x, target, weight, v, f, Found(*columns), spec, parts, wrt))
