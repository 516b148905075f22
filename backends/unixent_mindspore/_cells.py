"""The differentiable loss: cells whose derivatives are written out, down to the second.

MindSpore differentiates a cell through its ``bprop``, in eager mode, under ``jit``, ``jvp`` and ``vmap`` alike. A sum
must never be left to it: nested ``mindspore.grad`` through one is silently wrong in eager mode. So the loss's backward
pass is a cell of its own, whose backward pass is the curvature in closed form.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from mindspore.ops import operations as P

from unixent_mindspore._callback import CallbackGradient, CallbackLoss
from unixent_mindspore._derivatives import Curvature, PrimitiveGradient, PrimitiveLoss
from unixent_mindspore._eager import eager_gradient, eager_loss
from unixent_mindspore._plan import Plan


class _Differentiable(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.zeros = P.ZerosLike()

    def nothing(self, value: Tensor | None) -> Tensor | None:
        """The gradient of a constant."""
        if value is None:
            return None
        return self.zeros(value)


class Gradient(_Differentiable):
    """The backward pass as a function of inputs and upstream gradient, itself differentiable."""

    def __init__(self, forward: Any, curvature: Curvature) -> None:
        super().__init__()
        self.forward, self.curvature = forward, curvature
        self.several = not curvature.indexed

    def construct(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
        upstream: Tensor,
    ) -> Any:
        return self.forward(logits, target, weight, mask, normalizer, upstream)

    def bprop(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
        upstream: Tensor,
        out: Any,
        dout: Any,
    ) -> tuple[Any, ...]:
        if self.several:
            bend, shares, along = self.curvature(logits, target, weight, mask, normalizer, upstream, dout[0], dout[1])
        else:
            bend, shares, along = self.curvature(logits, target, weight, mask, normalizer, upstream, dout, None)
            shares = self.zeros(target)
        return bend, shares, self.nothing(weight), self.nothing(mask), self.nothing(normalizer), along


class Loss(_Differentiable):
    """``(logits, target, weight, mask, normalizer) -> loss``, differentiable for logits and probability targets."""

    def __init__(self, forward: Any, gradient: Gradient, terms: bool) -> None:
        super().__init__()
        self.forward, self.gradient, self.terms = forward, gradient, terms

    def construct(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None, normalizer: Tensor | None
    ) -> Any:
        return self.forward(logits, target, weight, mask, normalizer)

    def bprop(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
        out: Any,
        dout: Any,
    ) -> tuple[Any, ...]:
        upstream = dout[0] if self.terms else dout  # the denominator is a constant
        found = self.gradient(logits, target, weight, mask, normalizer, upstream)
        if self.gradient.several:
            slopes, shares = found
        else:
            slopes, shares = found, self.zeros(target)
        return slopes, shares, self.nothing(weight), self.nothing(mask), self.nothing(normalizer)


def on_cpu() -> bool:
    return bool(ms.get_context("device_target") == "CPU")


def _wide(plan: Plan, cpu: bool) -> str:
    """The dtype of the primitives' arithmetic: CPU kernels are accurate in float64 only."""
    return "float64" if cpu else plan.accumulation


@lru_cache(maxsize=512)
def eager_cell(plan: Plan, cpu: bool) -> Loss:
    """The loss for eager calls."""
    if not cpu:
        return graph_cell(plan, cpu)
    curvature = Curvature(plan, _wide(plan, cpu))
    return Loss(eager_loss(plan), Gradient(eager_gradient(plan), curvature), plan.terms)


@lru_cache(maxsize=512)
def graph_cell(plan: Plan, cpu: bool) -> Loss:
    """The loss for compiled graphs."""
    curvature = Curvature(plan, _wide(plan, cpu))
    if cpu:
        return Loss(CallbackLoss(plan), Gradient(CallbackGradient(plan), curvature), plan.terms)
    return primitive_cell(plan, _wide(plan, cpu))


@lru_cache(maxsize=512)
def primitive_cell(plan: Plan, dtype: str) -> Loss:
    """The loss in MindSpore's own primitives, computed in ``dtype``."""
    return Loss(
        PrimitiveLoss(plan, dtype), Gradient(PrimitiveGradient(plan, dtype), Curvature(plan, dtype)), plan.terms
    )
