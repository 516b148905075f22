"""The adapter: arrays described and handed over, problems turned into calls of the jitted loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from unixent import validation
from unixent.errors import BackendError
from unixent.options import ParallelConfig
from unixent.protocol import ArrayInfo, Capabilities, LinearProblem, LossProblem, LossTerms, Problem
from unixent_jax import _linear, _loss, _mesh, _spread


class JaxBackend:
    """`unixent.Backend` for `jax.Array`, traced or not, on any number of devices."""

    name = "jax"
    version = jax.__version__
    capabilities = Capabilities(
        dtypes=frozenset({"float16", "bfloat16", "float32", "float64"}),
        transforms=frozenset({"grad", "jit", "vmap", "jvp", "vjp", "hessian", "scan", "checkpoint", "export"}),
        linear=True,
        parallel=True,
    )

    def devices(self) -> tuple[str, ...]:
        return tuple(map(str, jax.devices()))

    def owns(self, array: object) -> bool:
        return isinstance(array, jax.Array)

    def describe(self, arrays: tuple[Array, ...]) -> tuple[ArrayInfo, ...]:
        return tuple([_info(array) for array in arrays])

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
        axes = _spread.names(config.model_group) + _spread.names(config.token_group)
        return config.mesh is not None and not _spread.bound(axes)

    def group_size(self, group: Any) -> int:
        axes = _spread.names(group)
        try:
            return _spread.size(axes)
        except NameError:
            raise BackendError(
                f"parallel: expected a call inside jax.shard_map over {', '.join(map(repr, axes))}, or whole arrays "
                "and a ParallelConfig.from_mesh(mesh, ...); got neither the axis nor a mesh"
            ) from None

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        # One program runs on all of them.
        return [row] * self.group_size(group)

    def cross_entropy(self, problem: Problem) -> Array | LossTerms:
        plan, arrays = _prepared(problem)
        result = _loss.value(plan, problem.result_dtype, arrays)
        return LossTerms(*result) if problem.return_terms else result

    def value_and_grad(
        self, problem: Problem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        plan, arrays = _prepared(problem)
        value, gradients = _loss.value_and_gradients(plan, problem.result_dtype, wrt, arrays, grad_output)
        return value, gradients

    def linear_cross_entropy(self, problem: LinearProblem) -> Array | LossTerms:
        plan, arrays = _prepared_linear(problem)
        result = _linear.value(plan, problem.result_dtype, arrays)
        return LossTerms(*result) if problem.return_terms else result

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        plan, arrays = _prepared_linear(problem)
        value, gradients = _linear.value_and_gradients(plan, problem.result_dtype, wrt, arrays, grad_output)
        return value, gradients


def _info(array: Array) -> ArrayInfo:
    if isinstance(array, jax.core.Tracer):
        return ArrayInfo(array.shape, array.dtype.name, "", readable=False, concrete=False)
    devices = array.sharding.device_set
    readable = array.is_fully_addressable and all(device.platform == "cpu" for device in devices)
    # An uncommitted array goes wherever the others are.
    where = ", ".join(sorted(map(str, devices))) if array.committed else ""
    return ArrayInfo(array.shape, array.dtype.name, where, readable)


def _plan(problem: LossProblem, axis: int) -> _loss.Plan:
    if problem.result_dtype == "float64" and not jax.config.jax_enable_x64:
        raise BackendError("dtype: expected float32 or narrower, since jax_enable_x64 is off; got 'float64'")
    split = problem.sharding
    plan = _loss.Plan(
        options=problem.options,
        axis=axis,
        classes=problem.num_classes,
        indexed=problem.target_kind == "index",
        acc_dtype=problem.acc_dtype,
        terms=problem.return_terms,
    )
    if split is None:
        return plan
    if split.mesh is None:
        return plan._replace(spread=_spread.Spread.of(split))
    return plan._replace(over=_mesh.over_of(split))


def _prepared(problem: Problem) -> tuple[_loss.Plan, _loss.Arrays]:
    plan = _plan(problem, problem.axis)
    _spread.expect_spread("logits", problem.logits, plan.spread.tokens + plan.spread.model)
    arrays = _loss.Arrays(problem.logits, problem.target, problem.weight, problem.mask, problem.normalizer)
    if problem.check_empty and bool(_loss.is_empty(plan._replace(over=None), arrays)):
        raise validation.empty_mean()
    return plan, arrays


def _prepared_linear(problem: LinearProblem) -> tuple[_linear.Plan, _linear.Arrays]:
    # A chunk of logits is (rows, classes).
    plan = _linear.Plan(_plan(problem, 1), problem.chunk)
    _spread.expect_spread("hidden", problem.hidden, plan.loss.spread.tokens)
    _spread.expect_spread("classifier", problem.classifier, plan.loss.spread.model)
    arrays = _linear.Arrays(
        hidden=problem.hidden,
        classifier=problem.classifier,
        bias=problem.bias,
        target=problem.target,
        weight=problem.weight,
        mask=problem.mask,
        normalizer=problem.normalizer,
    )
    if problem.check_empty and bool(_linear.is_empty(plan._replace(loss=plan.loss._replace(over=None)), arrays)):
        raise validation.empty_mean()
    return plan, arrays
