"""The fused linear form for tracers: one opaque operator, so that a compiled call holds no more logits than others.

A compiler fuses the loss into a pass or two by itself, but not across a matrix product: of a plain composition it would
keep all logits and their gradient. The operator is the eager kernel, run inside the compiled graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from unixent_torch.kernel.spec import Spec
from unixent_torch.linear.autograd import NAMES, LinearCall
from unixent_torch.linear.chunks import LinearOperands, LinearSpec, solve_linear
from unixent_torch.logits.reduction import Denominator, factor, reduce, spread


def _run(
    hidden: Tensor,
    classifier: Tensor,
    bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    v: Tensor | None,
    f: Tensor | None,
    acc_dtype: torch.dtype,
    smoothing: float,
    z_loss: float,
    softcap: float | None,
    host: bool,
    chunk: int | None,
    rounded: torch.dtype | None,
    wrt: str,
) -> list[Tensor]:
    operands = LinearOperands(hidden, classifier, bias, target, weight, v)
    spec = LinearSpec(Spec(acc_dtype, smoothing, z_loss, softcap, host), chunk, rounded)
    losses, grads = solve_linear(operands, f, spec, tuple(wrt.split()))
    return [losses, *grads]


_operator = torch.library.custom_op(
    "unixent::linear_cross_entropy",
    _run,
    mutates_args=(),
    schema=(
        "(Tensor hidden, Tensor classifier, Tensor? bias, Tensor target, Tensor? weight, Tensor? v, Tensor? f, "
        "ScalarType acc_dtype, float smoothing, float z_loss, float? softcap, bool host, int? chunk, "
        "ScalarType? rounded, str wrt) -> Tensor[]"
    ),
)


@_operator.register_fake
def _shapes(hidden: Tensor, classifier: Tensor, bias: Tensor | None, target: Tensor, *others: Any) -> list[Tensor]:
    acc_dtype, wrt = others[3], others[-1].split()
    sources = {"hidden": hidden, "classifier": classifier, "bias": bias, "target": target}
    found = [hidden.new_empty(hidden.shape[:-1], dtype=acc_dtype)]
    for name in wrt:
        source = sources[name]
        assert source is not None
        found.append(source.new_empty(source.shape, dtype=target.dtype if name == "target" else acc_dtype))
    return found


def solve_opaque(
    operands: LinearOperands, f: Tensor | None, spec: LinearSpec, wrt: tuple[str, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`solve_linear` as one operator of the graph."""
    rows = spec.rows
    losses, *grads = _operator(
        *operands,
        f,
        rows.acc_dtype,
        rows.smoothing,
        rows.z_loss,
        rows.softcap,
        rows.host,
        spec.chunk,
        spec.rounded,
        " ".join(wrt),
    )
    return losses, tuple(grads)


def apply_opaque(operands: LinearOperands, denominator: Denominator, how: LinearCall) -> Tensor:
    """The loss with its gradients in plain reverse mode."""
    wrt = tuple(name for name in NAMES if (x := getattr(operands, name)) is not None and x.requires_grad)
    if not (wrt and torch.is_grad_enabled()):
        return reduce(solve_opaque(operands, None, how.spec, ())[0], denominator, how.call)
    loss: Tensor = OpaqueLinear.apply(*operands, denominator, how, wrt)
    return loss


class OpaqueLinear(Function):
    """`unixent_torch.linear.autograd.EagerLinear`, its solver an operator and without looking at values."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        operands, (denominator, how, wrt) = LinearOperands(*inputs[:6]), inputs[6:]
        late = how.call.kept > 0 or ("target" in wrt and operands.target.dtype != how.call.spec.acc_dtype)
        one = torch.ones((), dtype=how.call.spec.acc_dtype, device=operands.hidden.device)
        f = None if late else factor(one, denominator, how.call)
        losses, grads = solve_opaque(operands, f, how.spec, () if late else wrt)
        ctx.how, ctx.denominator, ctx.wrt = how, denominator, wrt
        ctx.save_for_backward(*operands, *grads)
        return reduce(losses, denominator, how.call)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        how, wrt = ctx.how, ctx.wrt
        saved = ctx.saved_tensors
        operands, grads = LinearOperands(*saved[:6]), saved[6:]
        if grads:
            grads = [grad * upstream for grad in grads]
        else:
            f = spread(factor(upstream, ctx.denominator, how.call), operands.hidden.shape[:-1])
            grads = solve_opaque(operands, f.contiguous(), how.spec, wrt)[1]
        by_name = {name: grad.to(getattr(operands, name).dtype) for name, grad in zip(wrt, grads, strict=True)}
        return (*(by_name.get(name) for name in NAMES), None, None, None, None, None)
