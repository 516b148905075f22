"""The split loss as a function that autograd can differentiate: once without a word between processes.

As with `unixent_torch.logits.autograd`, a scalar loss has its gradient formed in the forward pass where reverse mode
asks for it, and `SplitLoss` is the same function for torch.func and forward mode. A derivative of the derivative needs
sums over the classes of all processes, one round of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent.errors import BackendError
from unixent_torch import compat
from unixent_torch.collectives import Parts, total
from unixent_torch.logits.autograd import arranged, asked, is_transformed
from unixent_torch.logits.gradient import Operands, inner
from unixent_torch.logits.reduction import Call, Denominator, factor, reduce, spread
from unixent_torch.vocab_parallel.hvp import split_curvature
from unixent_torch.vocab_parallel.statistics import Found, solve_split, split_gradients


@dataclass(frozen=True, slots=True)
class SplitCall:
    """What to make of the local logits: the reduction over the positions here, and how the classes are split."""

    call: Call
    parts: Parts


def apply_split(operands: Operands, denominator: Denominator, how: SplitCall) -> Tensor:
    """The loss of the positions here, recorded for whatever derivative may be asked of it."""
    if compat.transforms_active() or compat.in_forward_mode():
        loss: Tensor = SplitLoss.apply(*operands, denominator, how)[0]
        return loss
    x, target = operands[:2]
    if torch.is_grad_enabled() and (x.requires_grad or target.requires_grad):
        loss = EagerSplit.apply(*operands, denominator, how)
        return loss
    return reduce(solve_split(*operands, how.call.spec, how.parts)[0], denominator, how.call)


class EagerSplit(Function):
    """The loss under plain reverse mode."""

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
        call, parts, wrt = how.call, how.parts, asked(ctx)
        # A rounded gradient can't be scaled, and that of a probability is formed when it is asked for.
        early = call.kept == 0 and x.dtype == call.spec.acc_dtype and x.is_contiguous() and wrt == ("logits",)
        keep = torch.empty_like(x) if early else None
        losses, found = solve_split(x, target, weight, v, call.spec, parts, keep)
        ctx.how, ctx.denominator = how, denominator
        ctx.early = keep is not None
        if keep is not None:
            f = factor(1.0, denominator, call)
            split_gradients(x, target, weight, v, f, found, call.spec, parts, wrt, keep)
        ctx.save_for_backward(x, target, weight, v, *found, *(() if keep is None else (keep,)))
        return reduce(losses, denominator, call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        how, wrt = ctx.how, asked(ctx)
        x, target, weight, v, *columns = ctx.saved_tensors
        columns, early = columns[: len(Found._fields)], columns[len(Found._fields) :]
        f = factor(upstream, ctx.denominator, how.call)
        if torch.is_grad_enabled() or is_transformed(upstream):
            f = spread(f, x.shape[:-1])
            return arranged(wrt, SplitGradient.apply(x, target, weight, v, f, *columns, how, wrt))
        if early:
            keeps = compat.keeps_graph()
            return arranged(wrt, (early[0] * upstream if keeps else early[0].mul_(upstream),))
        found = Found(*columns)
        f = spread(f, x.shape[:-1])
        return arranged(wrt, split_gradients(x, target, weight, v, f, found, how.call.spec, how.parts, wrt))


class SplitLoss(Function):
    """The loss under every transform that torch has a rule for here, and what the processes found as constants."""

    @staticmethod
    def forward(
        x: Tensor, target: Tensor, weight: Tensor | None, v: Tensor | None, denominator: Denominator, how: SplitCall
    ) -> tuple[Tensor, ...]:
        losses, found = solve_split(x, target, weight, v, how.call.spec, how.parts)
        return (reduce(losses, denominator, how.call), *found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, denominator, how = inputs
        ctx.how, ctx.number = how, None
        if isinstance(denominator, float):
            ctx.number, denominator = denominator, None
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*operands, *output[1:], denominator)
        ctx.save_for_forward(*operands, *output[1:], denominator)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        *saved, denominator = ctx.saved_tensors
        denominator = denominator if ctx.number is None else ctx.number
        wrt, shape = asked(ctx), saved[0].shape[:-1]
        f = spread(factor(upstream, denominator, ctx.how.call), shape)
        return arranged(wrt, SplitGradient.apply(*saved[:4], f, *saved[4:], ctx.how, wrt))

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, target_t: Tensor | None, *_: Any) -> Any:
        *saved, denominator = ctx.saved_tensors
        denominator = denominator if ctx.number is None else ctx.number
        call, positions = ctx.how.call, saved[0].shape[:-1]
        tangents = {name: t for name, t in (("logits", x_t), ("target", target_t)) if t is not None}
        one = torch.ones(positions[: call.kept], dtype=call.spec.acc_dtype, device=saved[0].device)
        f = spread(factor(one, denominator, call), positions)
        grads = SplitGradient.apply(*saved[:4], f, *saved[4:], ctx.how, tuple(tangents))
        change = inner(grads, tuple(tangents.values()), one.dtype)
        if call.kept < len(positions):
            change = change.sum(tuple(range(call.kept, len(positions))))
        return (total(change, ctx.how.parts.model), *(None for _ in Found._fields))


class SplitGradient(Function):
    """The gradient of ``sum(f * losses)`` at this process's classes, for each of ``wrt``."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        x, target, weight, v, f, *columns, how, wrt = inputs
        return split_gradients(x, target, weight, v, f, Found(*columns), how.call.spec, how.parts, wrt)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.how, ctx.wrt = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        saved, how = ctx.saved_tensors, ctx.how
        by_x, by_target = Curvature.apply(*saved, *_pair(ctx.wrt, upstream), how)
        by_f = None
        if ctx.needs_input_grad[4]:
            plain = SplitGradient.apply(*saved[:4], torch.ones_like(saved[4]), *saved[5:], how, ctx.wrt)
            by_f = total(inner(plain, upstream, saved[4].dtype), how.parts.model)
        return (
            by_x if ctx.needs_input_grad[0] else None,
            by_target if ctx.needs_input_grad[1] else None,
            None,
            None,
            by_f,
            *(None for _ in Found._fields),
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, x_t: Any, target_t: Any, weight_t: Any, v_t: Any, f_t: Any, *_: Any) -> tuple[Tensor, ...]:
        saved, how = ctx.saved_tensors, ctx.how
        change = dict(zip(("logits", "target"), Curvature.apply(*saved, x_t, target_t, how), strict=True))
        found = tuple(change[name] for name in ctx.wrt)
        if f_t is None:
            return found
        moved = SplitGradient.apply(*saved[:4], f_t, *saved[5:], how, ctx.wrt)
        return tuple(a + b for a, b in zip(found, moved, strict=True))


def _pair(wrt: tuple[str, ...], values: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    by_name = dict(zip(wrt, values, strict=True))
    return by_name.get("logits"), by_name.get("target")


class Curvature(Function):
    """The second derivative along directions of logits and target; a third one is refused."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        x, target, weight, v, f, *columns, along_x, along_target, how = inputs
        along = {name: t for name, t in (("logits", along_x), ("target", along_target)) if t is not None}
        return split_curvature((x, target, weight, v), f, Found(*columns), how.call.spec, how.parts, along)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _no_third()

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise _no_third()


def _no_third() -> BackendError:
    return BackendError("parallel: a loss whose classes are split has first and second derivatives; a third was asked")
