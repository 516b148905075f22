"""Statistics in host memory, by the NumPy backend on the memory of MindSpore's own tensors, as the loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from mindspore import Tensor

from unixent.protocol import LinearProblem, PositionStats, StatsProblem
from unixent.registry import get_backend
from unixent.statistics import compute
from unixent_mindspore.collectives import Array
from unixent_mindspore.logits.host import from_host, host_arrays, host_dtype, host_problem, to_host
from unixent_mindspore.positions.problem import StatsSpec


def _numpy_stats(
    spec: StatsSpec, arrays: list[Array | None], grad_output: PositionStats, wrt: tuple[str, ...], dtype: str
) -> tuple[PositionStats, tuple[Array, ...]]:
    call = replace(host_problem(spec, arrays), result_dtype=dtype)
    problem = StatsProblem(call=call, outputs=spec.outputs, selected=arrays[8], k=spec.k)
    return compute(get_backend("numpy"), problem, grad_output, wrt)


def eager_stats(
    spec: StatsSpec, inputs: tuple[Tensor, ...], grad_output: PositionStats, wrt: tuple[str, ...]
) -> tuple[PositionStats, tuple[Tensor, ...]]:
    """Statistics and gradients that nothing will be differentiated through."""
    upstream = PositionStats(*[None if grad is None else to_host(grad) for grad in grad_output])
    dtype = host_dtype(spec.stats_dtype)
    stats, grads = _numpy_stats(spec, host_arrays(spec, inputs), upstream, wrt, dtype)
    tensors = {name: from_host(getattr(stats, name), dtype) for name, *_, dtype in spec.layout}
    dtypes = {name: str(spec.dtypes[i]) for i, name in zip(spec.wrt, spec.wrt_names, strict=True)}
    return PositionStats(**tensors), tuple(from_host(grad, dtypes[name]) for grad, name in zip(grads, wrt, strict=True))


def numpy_packed(spec: StatsSpec, arrays: list[Array | None]) -> tuple[Array]:
    """All outputs side by side."""
    stats, _ = _numpy_stats(spec, arrays, PositionStats(), (), spec.acc_dtype)
    return (_packed(spec, stats),)


def _packed(spec: StatsSpec, stats: PositionStats) -> Array:
    columns = [array if is_wide else array[..., None] for array, is_wide in _arrays(spec, stats)]
    return np.concatenate(columns, axis=-1, dtype=np.float64)


def _arrays(spec: StatsSpec, stats: PositionStats) -> list[tuple[Array, bool]]:
    return [(np.asarray(getattr(stats, column.name)), column.is_wide) for column in spec.layout]


def numpy_packed_and_grads(
    spec: StatsSpec, arrays: list[Array | None], grad_output: Array, wrt: tuple[str, ...]
) -> tuple[Array, tuple[Array, ...]]:
    """The same, and the gradients for ``wrt``, where the upstream gradients lie side by side."""
    upstream = {
        name: grad_output[..., start:stop] if is_wide else grad_output[..., start]
        for name, start, stop, is_wide, _ in spec.graded
    }
    scores = tuple(name for name in wrt if name != "target")
    stats, grads = _numpy_stats(spec, arrays, PositionStats(**upstream), scores, spec.acc_dtype)
    if scores != wrt:
        grads = (*grads, _target_grad(spec, arrays, upstream.get("loss")))
    return _packed(spec, stats), grads


def _target_grad(spec: StatsSpec, arrays: list[Array | None], grad_output: Array | None) -> Array:
    """That of probabilities, which the loss alone has."""
    if grad_output is None:
        return np.zeros_like(arrays[3])
    numpy, problem = get_backend("numpy"), host_problem(spec, arrays)
    value_and_grad: Any = numpy.linear_value_and_grad if isinstance(problem, LinearProblem) else numpy.value_and_grad
    return np.asarray(value_and_grad(problem, np.ascontiguousarray(grad_output), ("target",))[1][0])
