"""The cell that computes a call: by where its arrays lie, and what it asks. One is made for each `LossSpec`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache, partial
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
    forward, backward = host_loss(spec, loss), host_gradient(spec, grads)
    return _differentiable(spec, forward, backward, composed_dtype(spec.acc_dtype, on_host), _when_called)


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


def _gradient(spec: LossSpec, dtype: str) -> Any:
    """The derivative for the logits, in MindSpore's own primitives but for sparse targets."""
    if spec.teacher is None:
        gradient: Any = ComposedGradient(spec, dtype)
    else:
        gradient = EmptyGradient() if spec.no_positions else CallbackGradient(replace(spec, acc_dtype=dtype))
    return StatsGradient(spec, dtype, gradient) if isinstance(spec, StatsSpec) else gradient


def _curvature(spec: LossSpec, dtype: str) -> Any:
    """The derivative of `_gradient`."""
    if spec.teacher is None:
        curvature: Any = Curvature(spec, dtype)
    elif spec.no_positions:
        curvature = EmptyCurvature()
    else:
        curvature = CallbackCurvature(replace(spec, acc_dtype=dtype), numpy_curvature)
    return StatsCurvature(spec, dtype, curvature) if isinstance(spec, StatsSpec) else curvature


def _linear_curvature(spec: LossSpec, dtype: str) -> LinearCurvature:
    return LinearCurvature(spec, dtype, lambda *logits: (_gradient(*logits), _curvature(*logits)))


def _at_once(make: Callable[..., Any], spec: LossSpec, dtype: str) -> Any:
    """A cell, for the compiler to read."""
    return make(spec, dtype)


def _when_called(make: Callable[..., Any], spec: LossSpec, dtype: str) -> Callable[..., Any]:
    """A cell that is made by its first call: most eager losses are never differentiated twice."""
    made = cache(partial(make, spec, dtype))
    return lambda *inputs: made()(*inputs)


def _differentiable(
    spec: LossSpec, forward: Any, backward: Any, dtype: str, second: Callable[..., Any] = _at_once
) -> ForwardPass:
    if spec.sharding is not None:
        gradient: Any = RecomputedGradient(backward, None)
    elif spec.linear:
        gradient = LinearGradient(backward, second(_linear_curvature, spec, dtype))
    else:
        gradient = Gradient(backward, second(_curvature, spec, dtype))
    return (Terms if spec.return_terms else Loss)(forward, gradient)
