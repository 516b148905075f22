"""The differentiable loss: cells whose derivatives are written out, down to the second.

MindSpore differentiates a cell through its ``bprop``, in eager mode, under ``jit``, ``jvp`` and ``vmap`` alike. A sum
must never be left to it: nested ``mindspore.grad`` through one is silently wrong in eager mode. So the loss's backward
pass is a cell of its own, whose backward pass is the curvature in closed form.

Every cell takes the `INPUTS` of `unixent_mindspore._plan`, None for what there is not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from mindspore.ops import operations as P

from unixent.errors import BackendError
from unixent_mindspore._callback import CallbackGradient, CallbackLoss
from unixent_mindspore._derivatives import Curvature, PrimitiveGradient, PrimitiveLoss
from unixent_mindspore._eager import eager_gradient, eager_loss
from unixent_mindspore._plan import Plan


class _Differentiable(nn.Cell):
    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.several = len(plan.wrt) > 1
        self.linear, self.biased, self.indexed = plan.linear, plan.dtypes[2] is not None, plan.kind == "index"
        self.terms = plan.terms
        self.zeros = P.ZerosLike()

    def nothing(self, value: Tensor | None) -> Tensor | None:
        """The gradient of a constant."""
        if value is None:
            return None
        return self.zeros(value)


class Gradient(_Differentiable):
    """The backward pass as a function of inputs and upstream gradient, itself differentiable for the logits form."""

    def __init__(self, plan: Plan, forward: Any, curvature: Curvature | None) -> None:
        super().__init__(plan)
        self.forward: Any = forward
        self.curvature: Any = curvature

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
        upstream: Tensor,
    ) -> Any:
        return self.forward(scores, classifier, bias, target, weight, mask, normalizer, upstream)

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
        upstream: Tensor,
        out: Any,
        dout: Any,
    ) -> tuple[Any, ...]:
        if self.linear:
            raise NotImplementedError(
                "linear_cross_entropy: expected one derivative in reverse mode on the mindspore backend; got a second "
                "or forward mode, which cross_entropy(hidden @ classifier.T, ...) has"
            )
        if self.several:
            bend, shares, along = self.curvature(scores, target, weight, mask, normalizer, upstream, dout[0], dout[1])
        else:
            bend, shares, along = self.curvature(scores, target, weight, mask, normalizer, upstream, dout, None)
            shares = self.zeros(target)
        return bend, None, None, shares, self.nothing(weight), self.nothing(mask), self.nothing(normalizer), along


class Loss(_Differentiable):
    """The loss, differentiable for logits, or hidden, classifier and bias, and for probability targets."""

    def __init__(self, plan: Plan, forward: Any, gradient: Gradient) -> None:
        super().__init__(plan)
        self.forward, self.gradient = forward, gradient

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
    ) -> Any:
        return self.forward(scores, classifier, bias, target, weight, mask, normalizer)

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor | None,
        bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        mask: Tensor | None,
        normalizer: Tensor | None,
        out: Any,
        dout: Any,
    ) -> tuple[Any, ...]:
        upstream = dout
        if self.terms:
            upstream = dout[0]  # the denominator is a constant
        found = self.gradient(scores, classifier, bias, target, weight, mask, normalizer, upstream)
        if not self.several:
            found = (found,)
        rows, offsets = None, None
        if self.linear:
            rows = found[1]
        if self.biased:
            offsets = found[2]
        shares = self.zeros(target) if self.indexed else found[-1]
        return found[0], rows, offsets, shares, self.nothing(weight), self.nothing(mask), self.nothing(normalizer)


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
    curvature = None if plan.linear else Curvature(plan, _wide(plan, cpu))
    return Loss(plan, eager_loss(plan), Gradient(plan, eager_gradient(plan), curvature))


@lru_cache(maxsize=512)
def graph_cell(plan: Plan, cpu: bool) -> Loss:
    """The loss for compiled graphs."""
    if not cpu:
        return primitive_cell(plan, _wide(plan, cpu))
    curvature = None if plan.linear else Curvature(plan, _wide(plan, cpu))
    return Loss(plan, CallbackLoss(plan), Gradient(plan, CallbackGradient(plan), curvature))


@lru_cache(maxsize=512)
def primitive_cell(plan: Plan, dtype: str) -> Loss:
    """The loss in MindSpore's own primitives, computed in ``dtype``."""
    if plan.linear:
        raise BackendError(
            "linear_cross_entropy: expected tensors on CPU with the mindspore backend; got an accelerator"
        )
    gradient = Gradient(plan, PrimitiveGradient(plan, dtype), Curvature(plan, dtype))
    return Loss(plan, PrimitiveLoss(plan, dtype), gradient)
