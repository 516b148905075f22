"""The differentiable loss: cells whose derivatives are written out, down to the second.

MindSpore differentiates a cell through its ``bprop``, in eager mode, under ``jit``, ``jvp`` and ``vmap`` alike. A sum
must never be left to it: nested ``mindspore.grad`` through one is silently wrong in eager mode. So the loss's backward
pass is a cell of its own, whose backward pass is the curvature in closed form.

Every cell takes the `INPUTS` of `unixent_mindspore._plan`, `ABSENT` for what there is not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mindspore as ms
from mindspore import Tensor, nn
from mindspore.ops import operations as P

from unixent.errors import BackendError
from unixent_mindspore._callback import (
    CallbackBoth,
    CallbackGradient,
    CallbackLoss,
    CallbackTerms,
    VacantGradient,
    VacantLoss,
)
from unixent_mindspore._derivatives import Curvature, PrimitiveGradient, PrimitiveLoss
from unixent_mindspore._eager import eager_gradient, eager_loss
from unixent_mindspore._linear import LinearCurvature
from unixent_mindspore._plan import Plan
from unixent_mindspore._single import Both, ScaledGradient, SinglePassLoss
from unixent_mindspore._split import ONE_DERIVATIVE, SplitLoss, SplitPull, eager_split
from unixent_mindspore._split_rows import split_cell


class Gradient(nn.Cell):
    """The backward pass as a function of inputs and upstream gradient, itself differentiable."""

    def __init__(self, forward: Any, curvature: Any) -> None:
        super().__init__()
        self.forward, self.curvature = forward, curvature
        self.zeros = P.ZerosLike()

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
    ) -> Any:
        return self.forward(scores, classifier, bias, target, weight, mask, normalizer, upstream)

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        bend, shares, along = self.curvature(scores, target, weight, mask, normalizer, upstream, dout[0], dout[3])
        return (
            bend,
            self.zeros(classifier),
            self.zeros(bias),
            shares,
            self.zeros(weight),
            self.zeros(mask),
            self.zeros(normalizer),
            along,
        )


class LinearGradient(Gradient):
    """The backward pass of the fused linear form."""

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        found = self.curvature(scores, classifier, bias, target, weight, mask, normalizer, upstream, dout)
        return (
            found[0],
            found[1],
            found[2],
            found[3],
            self.zeros(weight),
            self.zeros(mask),
            self.zeros(normalizer),
            found[4],
        )


class LastGradient(Gradient):
    """The backward pass of a split loss that is not formed with its value."""

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        raise NotImplementedError(ONE_DERIVATIVE)


class Loss(nn.Cell):
    """The loss, differentiable for logits, or hidden, classifier and bias, and for probability targets."""

    def __init__(self, forward: Any, gradient: Gradient) -> None:
        super().__init__()
        self.forward, self.gradient = forward, gradient
        self.zeros = P.ZerosLike()

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
    ) -> Any:
        return self.forward(scores, classifier, bias, target, weight, mask, normalizer)

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        found = self.gradient(scores, classifier, bias, target, weight, mask, normalizer, dout)
        return (
            found[0],
            found[1],
            found[2],
            found[3],
            self.zeros(weight),
            self.zeros(mask),
            self.zeros(normalizer),
        )


class Terms(Loss):
    """Numerator and denominator of the loss; the denominator is a constant."""

    def bprop(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        out: Any,
        dout: Any,
    ) -> Any:
        found = self.gradient(scores, classifier, bias, target, weight, mask, normalizer, dout[0])
        return (
            found[0],
            found[1],
            found[2],
            found[3],
            self.zeros(weight),
            self.zeros(mask),
            self.zeros(normalizer),
        )


Cell = Loss | SinglePassLoss | SplitLoss


def on_cpu() -> bool:
    return bool(ms.get_context("device_target") == "CPU")


class Pull(nn.Cell):
    """The loss, and the gradients of scores, classifier, bias and target."""

    def __init__(self, cell: Loss | SinglePassLoss) -> None:
        super().__init__()
        self.cell, self.gradient, self.ones = cell, cell.gradient, P.OnesLike()

    def construct(
        self,
        scores: Tensor,
        classifier: Tensor,
        bias: Tensor,
        target: Tensor,
        weight: Tensor,
        mask: Tensor,
        normalizer: Tensor,
        upstream: Tensor | None,
    ) -> Any:
        loss = self.cell(scores, classifier, bias, target, weight, mask, normalizer)
        if upstream is None:
            upstream = self.ones(loss)
        return loss, self.gradient(scores, classifier, bias, target, weight, mask, normalizer, upstream)


@lru_cache(maxsize=512)
def pull(plan: Plan, cpu: bool, compiled: bool) -> Pull | SplitPull:
    """What gives loss and gradients at once."""
    cell = graph_cell(plan, cpu) if compiled else eager_cell(plan, cpu)
    return SplitPull(cell) if isinstance(cell, SplitLoss) else Pull(cell)


def _wide(plan: Plan, cpu: bool) -> str:
    """The dtype of the primitives' arithmetic: CPU kernels are accurate in float64 only."""
    return "float64" if cpu else plan.acc_dtype


def _assemble(plan: Plan, forward: Any, backward: Any, dtype: str) -> Loss:
    if plan.split is not None:
        gradient: Gradient = LastGradient(backward, None)
    elif plan.linear:
        gradient = LinearGradient(backward, LinearCurvature(plan, dtype))
    else:
        gradient = Gradient(backward, Curvature(plan, dtype))
    return (Terms if plan.terms else Loss)(forward, gradient)


@lru_cache(maxsize=512)
def eager_cell(plan: Plan, cpu: bool) -> Cell:
    """The loss for eager calls."""
    if not cpu:
        return graph_cell(plan, cpu)
    if plan.formed:
        return SplitLoss(plan, eager_split(plan))
    return _assemble(plan, eager_loss(plan), eager_gradient(plan), _wide(plan, cpu))


@lru_cache(maxsize=512)
def graph_cell(plan: Plan, cpu: bool) -> Cell:
    """The loss for compiled graphs."""
    dtype = _wide(plan, cpu)
    if plan.split is not None:
        return split_cell(plan, dtype, cpu)
    if plan.vacant:
        return _assemble(plan, VacantLoss(plan), VacantGradient(), dtype)
    if not cpu:
        return primitive_cell(plan, dtype)
    # A half-precision gradient must meet its upstream gradient (a loss scale, say) before it is rounded.
    single = plan.kind == "index" and plan.dtypes[0] == plan.acc_dtype
    if single and not (plan.linear or plan.each or plan.terms):
        curvature = Curvature(plan, dtype)
        both = Both(CallbackBoth(plan), ScaledGradient(curvature))
        return SinglePassLoss(both, Gradient(CallbackGradient(plan), curvature))
    forward = CallbackTerms(plan) if plan.terms else CallbackLoss(plan)
    return _assemble(plan, forward, CallbackGradient(plan), dtype)


@lru_cache(maxsize=512)
def primitive_cell(plan: Plan, dtype: str) -> Loss:
    """The loss in MindSpore's own primitives, computed in ``dtype``."""
    if plan.linear:
        raise BackendError(
            "linear_cross_entropy: expected tensors on CPU with the mindspore backend; got an accelerator"
        )
    return _assemble(plan, PrimitiveLoss(plan, dtype), PrimitiveGradient(plan, dtype), dtype)
