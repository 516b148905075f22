"""The fused linear form with its classifier split by classes: two reductions a chunk, one more for the hidden states.

Every process of a model group holds the same hidden states and makes the logits of its own classes. The gradient of the
hidden states is a sum over the classes of all of them: it is formed in the forward pass and summed there, so that each
process gets the whole one and the backward pass communicates nothing. Where the upstream gradient of each position
comes only then (``reduction="none"``), it scales that gradient position by position, and the classifier's is formed
from what the forward pass found.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent.chunking import linear_chunk
from unixent.errors import BackendError
from unixent_torch import compat
from unixent_torch.collectives import Parts, all_reduce
from unixent_torch.linear.autograd import NAMES, LinearCall, rounded
from unixent_torch.linear.chunks import Fused, LinearOperands, LinearSpec
from unixent_torch.logits.autograd import is_transformed
from unixent_torch.logits.reduction import Denominator, factor, reduce, spread
from unixent_torch.vocab_parallel.statistics import Found, solve_split, split_gradients


def solve_split_linear(
    operands: LinearOperands,
    f: Tensor | float | None,
    spec: LinearSpec,
    parts: Parts,
    wrt: tuple[str, ...] = (),
    found: Found | None = None,
) -> tuple[Tensor, tuple[Tensor, ...], Found]:
    """`unixent_torch.linear.chunks.solve_linear` for this process's classes, and what the processes found together.

    With ``found`` nothing is communicated and no loss comes out; "hidden" is then not to be asked for.
    """
    (*positions, width), kind = operands.hidden.shape, spec.rows.acc_dtype
    # As many chunks on every process, whatever its share of the classes.
    spec = replace(spec, chunk=linear_chunk(math.prod(positions), parts.most, width, kind.itemsize, spec.chunk))
    with torch.autocast(operands.hidden.device.type, enabled=False):
        fused = _SplitFused(operands, spec, wrt, parts, found)
        losses, grads = fused.run(f)
        if "hidden" in wrt:
            grads = tuple(
                all_reduce(grad, parts.model, "sum") if name == "hidden" else grad
                for name, grad in zip(wrt, grads, strict=True)
            )
        return losses, grads, fused.found()


class _SplitFused(Fused):
    """The loop over chunks, each of them with statistics of all processes."""

    def __init__(
        self, operands: LinearOperands, spec: LinearSpec, wrt: tuple[str, ...], parts: Parts, found: Found | None
    ) -> None:
        super().__init__(operands, spec, wrt)
        self._parts, self._given = parts, found
        self._found: list[Found] = []

    def found(self) -> Found:
        """The statistics of all positions."""
        if self._given is not None:
            return self._given
        if not self._found:
            self._losses(self._hidden.new_empty((0, self._classes), dtype=self._kind), slice(0, 0), None)
        return Found(*(torch.cat(columns) for columns in zip(*self._found, strict=True)))

    def _losses(self, block: Tensor, here: slice, factor: Tensor | float | None) -> Tensor:
        spec, weight = self._spec.rows, self._operands.weight
        target, v = self._target[here], None if self._v is None else self._v[here]
        wanted = bool(self._grads.keys() - {"target"})
        # The exponentials may take the place of the logits unless these are needed again.
        again = spec.softcap is not None or "target" in self._grads
        keep = (torch.empty_like(block) if again else block) if wanted and self._given is None else None
        if self._given is None:
            losses, found = solve_split(block, target, weight, v, spec, self._parts, keep)
            self._found.append(found)
        else:
            losses = block.new_zeros(len(block))
            found = Found(*(column[here] for column in self._given))
        wrt = (("logits",) if wanted else ()) + (("target",) if "target" in self._grads else ())
        if wrt:
            if isinstance(factor, Tensor) and factor.ndim:
                factor = factor[here]
            grads = split_gradients(block, target, weight, v, factor, found, spec, self._parts, wrt, keep)
            by_name = dict(zip(wrt, grads, strict=True))
            if "target" in by_name:
                self._grads["target"][here] = by_name["target"]
            if wanted and by_name["logits"].data_ptr() != block.data_ptr():
                block.copy_(by_name["logits"])
        return losses


def apply_split_linear(operands: LinearOperands, denominator: Denominator, how: LinearCall, parts: Parts) -> Tensor:
    """The loss of the positions here, recorded for a plain backward pass."""
    if compat.transforms_active() or compat.in_forward_mode():
        raise _only_backward()
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in operands[:4]):
        loss: Tensor = SplitLinear.apply(*operands, denominator, how, parts)
        return loss
    return reduce(solve_split_linear(operands, None, how.spec, parts)[0], denominator, how.call)


def _only_backward() -> BackendError:
    return BackendError(
        "parallel: the fused linear form with its classifier split has a plain backward pass; forward mode, "
        "torch.func, is_grads_batched and second derivatives were not expected (logits have some)"
    )


class SplitLinear(Function):
    """The loss under plain reverse mode, once."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        operands, (denominator, how, parts) = LinearOperands(*inputs[:6]), inputs[6:]
        call = how.call
        wrt = tuple(name for name, needed in zip(NAMES, ctx.needs_input_grad, strict=False) if needed)
        # The gradient of probabilities is as large as the logits: it is formed when it is asked for.
        late = call.kept > 0 or "target" in wrt
        early = tuple(name for name in wrt if name == "hidden") if late else wrt
        f = None if call.kept else factor(1.0, denominator, call)
        losses, grads, found = solve_split_linear(operands, f, how.spec, parts, early)
        ctx.how, ctx.denominator, ctx.parts, ctx.wrt, ctx.late = how, denominator, parts, wrt, late
        ctx.save_for_backward(*operands, *found, *grads)
        return reduce(losses, denominator, call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        if is_transformed(upstream):
            raise _only_backward()
        with torch.no_grad():
            grads = _gradients(ctx, upstream.detach())
        if torch.is_grad_enabled():
            # A second derivative of this term would be left out without a word.
            inputs = (upstream, *ctx.saved_tensors[:6])
            grads = tuple(None if grad is None else Once.apply(grad, *inputs) for grad in grads)
        return (*grads, *(None for _ in range(5)))


class Once(Function):
    """A gradient that depends on the inputs of the loss, and says so when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise _only_backward()


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """What the forward pass found, times the upstream gradient, in the order of `NAMES`."""
    saved, wrt, how = ctx.saved_tensors, ctx.wrt, ctx.how
    operands, found, grads = LinearOperands(*saved[:6]), Found(*saved[6:16]), saved[16:]
    keeps = compat.keeps_graph()
    if not ctx.late:
        found_grads = tuple(grad * upstream if keeps else grad.mul_(upstream) for grad in grads)
        by_name = dict(zip(wrt, found_grads, strict=True))
    else:
        shape = operands.hidden.shape[:-1]
        f = spread(factor(upstream, ctx.denominator, how.call), shape)
        rest = tuple(name for name in wrt if name != "hidden")
        again = solve_split_linear(operands, f, how.spec, ctx.parts, rest, found)[1] if rest else ()
        by_name = dict(zip(rest, again, strict=True))
        if grads:
            by_name["hidden"] = grads[0] * spread(upstream, shape).unsqueeze(-1)
            if operands.v is not None:
                by_name["hidden"].masked_fill_((operands.v == 0).unsqueeze(-1), 0)
    by_name = dict(zip(by_name, rounded(tuple(by_name), tuple(by_name.values()), operands), strict=True))
    return tuple(map(by_name.get, NAMES))
