"""The adapter: arrays described and handed over, problems turned into calls of jitted programs."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.export import is_symbolic_dim

from unixent import validation
from unixent.errors import BackendError
from unixent.options import ParallelConfig
from unixent.protocol import (
    ArrayInfo,
    Capabilities,
    Device,
    LinearProblem,
    LossTerms,
    PositionStats,
    Problem,
    StatsProblem,
)
from unixent_jax.collectives import ShardAxes, axis_names, axis_size, check_varies, inside_shard_map
from unixent_jax.linear import reduction as linear
from unixent_jax.linear.problem import LinearArrays, LinearSpec
from unixent_jax.logits import jitted
from unixent_jax.logits import reduction as logits
from unixent_jax.logits.problem import LossArrays, LossSpec, loss_spec
from unixent_jax.positions.rows import GATHERS
from unixent_jax.positions.solve import StatsSpec, local_stats, solve_stats, stats
from unixent_jax.sparse import SparseSpec, local_sparse_loss, sparse_loss
from unixent_jax.vocab_parallel.problem import MeshAxes, MeshSpec
from unixent_jax.vocab_parallel.reduction import over_mesh
from unixent_native import kernel_name

_PLATFORM = attrgetter("platform")

# The function of (spec, arrays) that answers a call, its spec, the dtype of the result, the arrays.
_Call = tuple[Callable[..., Any], Any, str, LossArrays | LinearArrays]


class JaxBackend:
    """`unixent.Backend` for `jax.Array`, traced or not, on any number of devices."""

    name = "jax"
    version = jax.__version__
    capabilities = Capabilities(
        dtypes=frozenset({"float16", "bfloat16", "float32", "float64"}),
        targets=frozenset({"index", "probability", "sparse"}),
        transforms=frozenset({"grad", "jit", "vmap", "jvp", "vjp", "hessian", "scan", "checkpoint", "export"}),
        linear=True,
        position_stats=True,
        parallel_position_stats=True,
        parallel_targets=frozenset({"index", "probability", "sparse"}),
        parallel=True,
        traces_values=True,
    )
    along = GATHERS

    def devices(self) -> tuple[Device, ...]:
        devices = jax.devices()
        alone = len(devices) == 1 and devices[0].platform == "cpu"
        kernel = kernel_name("XLA") if alone else "XLA"
        return tuple([Device(str(device), kernel) for device in devices])

    def owns(self, array: object) -> bool:
        return isinstance(array, jax.Array)

    def describe(self, arrays: tuple[Array, ...]) -> tuple[ArrayInfo, ...]:
        return tuple(map(_info, arrays))

    def asarray(self, value: np.ndarray[Any, Any], like: Array | None) -> Array:
        kept = jax.dtypes.canonicalize_dtype(value.dtype)
        if kept.kind in "iu" and kept != value.dtype and value.size:
            limits = np.iinfo(kept)
            if value.min() < limits.min or value.max() > limits.max:
                raise BackendError(
                    f"backend: expected {value.dtype} values that fit {kept}, since jax_enable_x64 is off; got values "
                    f"in [{value.min()}, {value.max()}]"
                )
        return jnp.asarray(value)

    def traced_asarray(self, name: str, value: object, like: Array | None) -> Array | None:
        # A size that `jax.export` leaves open, or an expression of such sizes.
        return jnp.asarray(value) if is_symbolic_dim(value) else None

    def broadcast_to(self, array: Array, shape: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(array, shape)

    def take_classes(self, array: Array, axis: int, num_classes: int) -> Array:
        return jax.lax.slice_in_dim(array, 0, num_classes, axis=axis)

    def pad_classes(self, array: Array, axis: int, num_classes: int) -> Array:
        missing = num_classes - array.shape[axis]
        return jnp.pad(array, [(0, missing if each == axis else 0) for each in range(array.ndim)])

    def first_invalid_target(self, target: Array, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        values = np.asarray(target)
        if values.size == 0 or (values.min() >= 0 and values.max() < num_classes):
            return None
        limits = np.iinfo(values.dtype)
        invalid = (values < 0) | (values >= num_classes)
        if limits.min <= ignore_index <= limits.max:
            invalid &= values != ignore_index
        flat = int(invalid.argmax())
        return (flat, int(values.reshape(-1)[flat])) if invalid.any() else None

    def first_nonfinite(self, array: Array) -> int | None:
        bad = ~np.isfinite(np.asarray(array.astype(jnp.float32) if array.dtype.itemsize < 4 else array))
        return int(bad.argmax()) if bad.any() else None

    def is_single_program(self) -> bool:
        return False

    def is_global(self, array: object, config: ParallelConfig) -> bool:
        axes = axis_names(config.model_group) + axis_names(config.token_group)
        return config.mesh is not None and not inside_shard_map(axes)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def group_size(self, group: Any) -> int:
        axes = axis_names(group)
        try:
            return axis_size(axes)
        except NameError:
            raise BackendError(
                f"parallel: expected a call inside jax.shard_map over {', '.join(map(repr, axes))}, or whole arrays "
                "and a ParallelConfig.from_mesh(mesh, ...); got neither the axis nor a mesh"
            ) from None

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        # One program runs on all of them.
        return [row] * self.group_size(group)

    def cross_entropy(self, problem: Problem) -> Array | LossTerms:
        result = jitted.value(*_logits_call(problem))
        return LossTerms(*result) if problem.return_terms else result

    def value_and_grad(
        self, problem: Problem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        loss, spec, result_dtype, arrays = _logits_call(problem)
        value, grads = jitted.value_and_grads(loss, spec, result_dtype, wrt, arrays, grad_output)
        return value, grads

    def linear_cross_entropy(self, problem: LinearProblem) -> Array | LossTerms:
        result = jitted.value(*_linear_call(problem))
        return LossTerms(*result) if problem.return_terms else result

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        loss, spec, result_dtype, arrays = _linear_call(problem)
        value, grads = jitted.value_and_grads(loss, spec, result_dtype, wrt, arrays, grad_output)
        return value, grads

    def position_stats(
        self, problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
    ) -> tuple[PositionStats, tuple[Array, ...]]:
        return solve_stats(*_stats_call(problem), grad_output, wrt)


def _info(array: Array) -> ArrayInfo:
    if isinstance(array, jax.core.Tracer):
        return ArrayInfo(array.shape, array.dtype.name, "", readable=False, concrete=False)
    if array.is_deleted():
        return ArrayInfo(array.shape, array.dtype.name, "", layout="none: it was deleted, or donated to a program")
    devices = array.sharding.device_set
    readable = array.is_fully_addressable and {*map(_PLATFORM, devices)} == {"cpu"}
    # An uncommitted array goes wherever the others are.
    names = ", ".join(sorted(map(str, devices))) if array.committed else ""
    return ArrayInfo(array.shape, array.dtype.name, names, readable)


def _logits_call(problem: Problem) -> _Call:
    spec, arrays = loss_spec(problem, problem.axis), LossArrays.of(problem)
    if problem.check_empty and bool(logits.is_empty(spec, arrays)):
        raise validation.empty_mean()
    if problem.teacher is not None:
        return _call(problem, SparseSpec(spec, problem.teacher), arrays, sparse_loss, local_sparse_loss)
    return _call(problem, spec, arrays, logits.loss, logits.local_loss)


def _linear_call(problem: LinearProblem) -> _Call:
    # The logits of a chunk are (rows, classes).
    spec, arrays = LinearSpec(loss_spec(problem, 1), problem.chunk), LinearArrays.of(problem)
    if problem.check_empty and bool(linear.is_empty(spec, arrays)):
        raise validation.empty_mean()
    if problem.teacher is not None:
        return _call(problem, SparseSpec(spec, problem.teacher), arrays, sparse_loss, local_sparse_loss)
    return _call(problem, spec, arrays, linear.loss, linear.local_loss)


def _stats_call(problem: StatsProblem) -> _Call:
    call = problem.call
    scores: LossSpec | LinearSpec
    arrays: LossArrays | LinearArrays
    if isinstance(call, Problem):
        scores, arrays = loss_spec(call, call.axis), LossArrays.of(call)
    else:
        scores, arrays = LinearSpec(loss_spec(call, 1), call.chunk), LinearArrays.of(call)
    arrays = arrays._replace(ids=problem.selected)
    return _call(call, StatsSpec(scores, problem.outputs, problem.k), arrays, stats, local_stats)


def _call(
    problem: Problem | LinearProblem,
    spec: LossSpec | LinearSpec | StatsSpec | SparseSpec,
    arrays: LossArrays | LinearArrays,
    whole: Callable[..., Any],
    local: Callable[..., Any],
) -> _Call:
    """A call of ``whole``, or of ``local`` on shards, where the problem has them or a mesh to cut them over."""
    sharding = problem.sharding
    if sharding is None:
        return whole, spec, problem.result_dtype, arrays
    if sharding.mesh is not None:
        return over_mesh, MeshSpec(local, spec, MeshAxes.of(sharding)), problem.result_dtype, arrays
    axes = ShardAxes.of(sharding)
    if isinstance(problem, Problem):
        check_varies("logits", problem.logits, axes.tokens + axes.model)
    else:
        check_varies("hidden", problem.hidden, axes.tokens)
        check_varies("classifier", problem.classifier, axes.model)
    return whole, spec.on_shards(axes), problem.result_dtype, arrays
