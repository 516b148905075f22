"""The cell that computes a call: by where its arrays lie, and what it asks. One is made for each `LossSpec`."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from unixent_mindspore.kernel import composed_dtype
from unixent_mindspore.linear.autograd import LinearCurvature, LinearGradient
from unixent_mindspore.logits.autograd import (
    ForwardPass,
    Gradient,
    Loss,
    LossAndGrad,
    ScaledGradient,
    SinglePassLoss,
    Terms,
    ValueAndGrad,
)
from unixent_mindspore.logits.callback import (
    CallbackCurvature,
    CallbackGradient,
    CallbackLoss,
    CallbackLossAndGrad,
    CallbackTerms,
    EmptyCurvature,
    EmptyGradient,
    EmptyLoss,
)
from unixent_mindspore.logits.composed import ComposedGradient, ComposedLoss
from unixent_mindspore.logits.curvature import Curvature
from unixent_mindspore.logits.host import host_gradient, host_loss, numpy_loss, numpy_value_and_grad
from unixent_mindspore.logits.problem import LossSpec
from unixent_mindspore.positions.curvature import StatsCurvature, StatsGradient
from unixent_mindspore.positions.host import numpy_packed, numpy_packed_and_grads
from unixent_mindspore.positions.outputs import Statistics, StatisticsAndGrads
from unixent_mindspore.positions.problem import StatsSpec
from unixent_mindspore.positions.sparse import numpy_curvature
from unixent_mindspore.vocab_parallel.autograd import (
    RecomputedGradient,
    ShardedLoss,
    ShardedValueAndGrad,
    host_loss_and_grads,
)
from unixent_mindspore.vocab_parallel.composed import sharded_cell

LossCell = ForwardPass | SinglePassLoss | ShardedLoss


@lru_cache(maxsize=512)
def value_and_grad_cell(spec: LossSpec, on_host: bool, compiled: bool) -> ValueAndGrad | ShardedValueAndGrad:
    """Loss and gradients at once, of the upstream gradient (or None) and the `INPUTS`."""
    cell = graph_cell(spec, on_host) if compiled else eager_cell(spec, on_host)
    return ShardedValueAndGrad(cell) if isinstance(cell, ShardedLoss) else ValueAndGrad(cell)


@lru_cache(maxsize=512)
def eager_cell(spec: LossSpec, on_host: bool) -> LossCell:
    """The loss of the `INPUTS` for eager calls."""
    if not on_host:
        return graph_cell(spec, on_host)
    if spec.saves_gradient:
        return ShardedLoss(spec, host_loss_and_grads(spec))
    loss, grads = _numpy_passes(spec)
    return _differentiable(
        spec, host_loss(spec, loss), host_gradient(spec, grads), composed_dtype(spec.acc_dtype, on_host)
    )


@lru_cache(maxsize=512)
def graph_cell(spec: LossSpec, on_host: bool) -> LossCell:
    """The loss of the `INPUTS` for compiled graphs, and for accelerators."""
    dtype = composed_dtype(spec.acc_dtype, on_host)
    if spec.sharding is not None:
        return sharded_cell(spec, dtype, on_host)
    if spec.no_positions:
        return _differentiable(spec, EmptyLoss(spec), EmptyGradient(), dtype)
    if not on_host:
        return composed_cell(spec, dtype)
    # A half-precision gradient must meet its upstream gradient (a loss scale, say) before it is rounded.
    single_pass = spec.target_kind == "index" and spec.dtypes[0] == spec.acc_dtype
    if single_pass and not (spec.linear or spec.per_position or spec.return_terms):
        curvature = Curvature(spec, dtype)
        both = LossAndGrad(CallbackLossAndGrad(spec), ScaledGradient(curvature))
        return SinglePassLoss(both, Gradient(CallbackGradient(spec), curvature))
    loss, grads = _numpy_passes(spec)
    forward = CallbackTerms(spec) if spec.return_terms else CallbackLoss(spec, loss)
    return _differentiable(spec, forward, CallbackGradient(spec, grads), dtype)


@lru_cache(maxsize=512)
def composed_cell(spec: LossSpec, dtype: str) -> ForwardPass:
    """The loss of the `INPUTS` in MindSpore's own primitives, computed in ``dtype``."""
    return _differentiable(spec, ComposedLoss(spec, dtype), ComposedGradient(spec, dtype), dtype)


@lru_cache(maxsize=512)
def stats_cell(spec: StatsSpec, compiled: bool, with_grads: bool) -> Statistics | StatisticsAndGrads:
    """The outputs of the `INPUTS`, and gradients, of what lies in host memory."""
    if with_grads:
        return StatisticsAndGrads(spec, value_and_grad_cell(spec, True, compiled))
    return Statistics(spec, graph_cell(spec, True) if compiled else eager_cell(spec, True))


def _numpy_passes(spec: LossSpec) -> tuple[Any, Any]:
    """What the NumPy backend computes: the value, and value and gradients."""
    if isinstance(spec, StatsSpec):
        return numpy_packed, numpy_packed_and_grads
    return numpy_loss, numpy_value_and_grad


def _derivatives(spec: LossSpec, dtype: str) -> tuple[Any, Any]:
    """The first and the second derivative for the logits, in MindSpore's own primitives but for sparse targets."""
    gradient, curvature = _loss_derivatives(spec, dtype)
    if isinstance(spec, StatsSpec):
        return StatsGradient(spec, dtype, gradient), StatsCurvature(spec, dtype, curvature)
    return gradient, curvature


def _loss_derivatives(spec: LossSpec, dtype: str) -> tuple[Any, Any]:
    if spec.teacher is not None and spec.no_positions:
        return EmptyGradient(), EmptyCurvature()
    if spec.teacher is not None:
        wide = replace(spec, acc_dtype=dtype)
        return CallbackGradient(wide), CallbackCurvature(wide, numpy_curvature)
    return ComposedGradient(spec, dtype), Curvature(spec, dtype)


def _differentiable(spec: LossSpec, forward: Any, backward: Any, dtype: str) -> ForwardPass:
    if spec.sharding is not None:
        gradient: Any = RecomputedGradient(backward, None)
    elif spec.linear:
        gradient = LinearGradient(backward, LinearCurvature(spec, dtype, _derivatives))
    else:
        gradient = Gradient(backward, _derivatives(spec, dtype)[1])
    return (Terms if spec.return_terms else Loss)(forward, gradient)
