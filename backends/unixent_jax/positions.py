"""Statistics of positions: one jitted program, with the derivative rules of `unixent.row_statistics`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from unixent import row_statistics
from unixent.protocol import PositionStats, Problem, StatsProblem
from unixent.row_statistics import GRADED, Along, Classes
from unixent.semantics import LogitTransform
from unixent_jax.kernel import KernelSpec, is_index
from unixent_jax.kernel.rows import product, times_tangent
from unixent_jax.kernel.transform import apply_transform
from unixent_jax.linear.chunks import chunk_logits, join_rows, split_rows
from unixent_jax.linear.problem import LinearArrays, LinearSpec, positions_by_row, rows_of
from unixent_jax.logits.autograd import row_losses
from unixent_jax.logits.problem import LossArrays, LossSpec, loss_spec, positions_of, prepare

_INDICES = frozenset({"prediction", "rank", "top_index"})


def _top(x: Array, k: int) -> Array:
    return lax.top_k(jnp.where(x == 0, 0, x), k)[1]  # whose order would tell -0 from 0


def _add_at(x: Array, index: Array, values: Array) -> Array:
    rows = [lax.broadcasted_iota(index.dtype, index.shape, axis) for axis in range(index.ndim - 1)]
    at = (*rows, index)
    return x.at[at].add(jnp.broadcast_to(values, index.shape), mode="promise_in_bounds")


@jax.custom_jvp
def _product(coef: Array, value: Array) -> Array:
    return product(coef, value)


@_product.defjvp
def _product_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (coef, value), (of_coef, of_value) = primals, tangents
    return _product(coef, value), times_tangent(value, of_coef) + coef * of_value


ALONG = Along(
    xp=jnp,
    take=partial(jnp.take_along_axis, axis=-1, mode="promise_in_bounds"),
    sum=partial(jnp.sum, axis=-1, keepdims=True),
    max=partial(jnp.max, axis=-1, keepdims=True),
    argmax=partial(jnp.argmax, axis=-1, keepdims=True),
    top=_top,
    classes=lambda x: jnp.arange(x.shape[-1]),
    add_at=_add_at,
    product=_product,
    constant=lax.stop_gradient,
    astype=lambda x, name: x.astype(getattr(jnp, name)),
)


class StatsSpec(NamedTuple):
    """What is static about a call."""

    scores: LossSpec | LinearSpec
    outputs: tuple[str, ...]
    k: int
    result_dtype: str

    @property
    def loss(self) -> LossSpec:
        return self.scores if isinstance(self.scores, LossSpec) else self.scores.loss


def solve_stats(
    problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
) -> tuple[PositionStats, tuple[Array, ...]]:
    """The statistics, and the gradients for ``wrt``."""
    call = problem.call
    scores: LossSpec | LinearSpec
    arrays: LossArrays | LinearArrays
    if isinstance(call, Problem):
        scores, arrays = loss_spec(call, call.axis), LossArrays.of(call)
    else:
        scores, arrays = LinearSpec(loss_spec(call, 1), call.chunk), LinearArrays.of(call)
    spec = StatsSpec(scores, problem.outputs, problem.k, call.result_dtype)
    if not wrt:
        return PositionStats(**_values(spec, arrays, problem.selected)), ()
    upstream = {name: array for name, array in grad_output._asdict().items() if array is not None}
    stats, grads = _values_and_grads(spec, arrays, problem.selected, upstream, wrt)
    return PositionStats(**stats), grads


@partial(jax.jit, static_argnums=0)
def _values(spec: StatsSpec, arrays: Any, selected: Array | None) -> dict[str, Array]:
    return _rounded(spec, position_columns(spec, arrays, selected))


@partial(jax.jit, static_argnums=(0, 4))
def _values_and_grads(
    spec: StatsSpec, arrays: Any, selected: Array | None, upstream: dict[str, Array], wrt: tuple[str, ...]
) -> tuple[dict[str, Array], tuple[Array, ...]]:
    def of(*moving: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        stats = position_columns(spec, arrays._replace(**dict(zip(wrt, moving, strict=True))), selected)
        return {name: stats[name] for name in upstream}, stats

    graded, vjp, stats = jax.vjp(of, *(getattr(arrays, name) for name in wrt), has_aux=True)
    return _rounded(spec, stats), vjp({name: upstream[name].astype(each.dtype) for name, each in graded.items()})


def _rounded(spec: StatsSpec, stats: dict[str, Array]) -> dict[str, Array]:
    dtype = getattr(jnp, spec.result_dtype)
    floating = {name for name, each in stats.items() if jnp.issubdtype(each.dtype, jnp.floating)}
    return {name: each.astype(dtype) if name in floating else each for name, each in stats.items()}


def position_columns(spec: StatsSpec, arrays: Any, selected: Array | None) -> dict[str, Array]:
    """The outputs in the accumulation dtype."""
    arrays = prepare(spec.loss, arrays)
    if isinstance(spec.scores, LinearSpec):
        return _of_hidden(spec, spec.scores, arrays, selected)
    kernel, axis = spec.loss.kernel, spec.loss.kernel.class_axis.axis
    x, target = jnp.moveaxis(arrays.logits.astype(kernel.acc_dtype), axis, -1), arrays.target
    target = target if is_index(target) else jnp.moveaxis(target, axis, -1)
    positions = positions_of(spec.loss, target, arrays.mask)
    return _of_rows(spec, kernel, x, positions.target, arrays.weight, positions.weight, selected)


def _of_hidden(spec: StatsSpec, scores: LinearSpec, arrays: LinearArrays, selected: Array | None) -> dict[str, Array]:
    shape, kernel = arrays.hidden.shape[:-1], spec.loss.kernel
    rows = rows_of(spec.loss, arrays, positions_by_row(spec.loss, arrays))
    count = rows.hidden.shape[0]
    if 0 in shape:
        empty = jnp.zeros((*shape, rows.classifier.shape[0]), kernel.acc_dtype)
        target = arrays.target
        return _of_rows(spec, kernel, empty, target, arrays.weight, arrays.mask, selected)
    chunks = split_rows(scores, rows)
    num_chunks, size = chunks.hidden.shape[:2]
    chosen = None
    if selected is not None:
        flat = selected.reshape(count, selected.shape[-1])
        padded = jnp.pad(flat, [(0, num_chunks * size - count), (0, 0)])
        chosen = padded.reshape(num_chunks, size, selected.shape[-1])

    # Recomputed for the gradient, so that no logits are kept.
    @jax.checkpoint
    def solve(chunk: Any) -> dict[str, Array]:
        part, selected_here = chunk
        x = chunk_logits(rows, part)
        return _of_rows(spec, kernel, x, part.target, rows.weight, part.position_weight, selected_here)

    stats = lax.map(solve, (chunks, chosen))
    return {name: join_rows(each, rows).reshape(*shape, *each.shape[2:]) for name, each in stats.items()}


def _of_rows(
    spec: StatsSpec,
    kernel: KernelSpec,
    x: Array,
    target: Array,
    weight: Array | None,
    position_weight: Array | None,
    selected: Array | None,
) -> dict[str, Array]:
    """The outputs of rows P + (C,) of logits as they were given."""
    stats: dict[str, Array] = {}
    if "loss" in spec.outputs:
        last = kernel._replace(class_axis=kernel.class_axis._replace(axis=x.ndim - 1))
        stats["loss"] = row_losses(last, x, target, weight, position_weight)
    v = jnp.ones(x.shape[:-1], x.dtype) if position_weight is None else position_weight
    active, known = (v != 0)[..., None], jnp.where(jnp.isnan(v), math.nan, 1)[..., None].astype(x.dtype)
    # What an inactive row holds would reach its gradient as NaN.
    x = apply_transform(kernel.transform, jnp.where(active, x, 0))
    if kernel.transform != LogitTransform():
        x = lax.optimization_barrier(x)  # the same bits wherever it enters
    smoothing = None
    if "regularizer" in spec.outputs and kernel.label_smoothing:
        ones = jnp.ones(kernel.num_classes, x.dtype) if weight is None else weight
        smoothing = ones * (kernel.label_smoothing / kernel.num_classes)
    chosen, weights = (None, None) if selected is None else safe_selection(spec.loss, selected, x.dtype)
    index = target[..., None] if is_index(target) else None
    classes = Classes(index, chosen, weights, smoothing=smoothing, z_loss=kernel.z_loss)
    graded = tuple(name for name in spec.outputs if name in GRADED)
    others = tuple(name for name in spec.outputs if name not in GRADED and name != "loss")
    if graded:
        for name, each in zip(graded, _graded(graded, x, classes), strict=True):
            counts = active & (classes.selected_weight != 0) if name == "selected_log_prob" else active
            stats[name] = jnp.where(counts, each * known, 0)
    if others:
        solved = row_statistics.solve(ALONG, lax.stop_gradient(x))
        undefined = jnp.isnan(solved.stats.loss * known)
        for name, each in row_statistics.values(ALONG, solved, others, classes, spec.k).items():
            if name in _INDICES:
                each = jnp.where(active & ~undefined, each, -1).astype(jax.dtypes.canonicalize_dtype("int64"))
            elif name == "correct":
                each = each & active & ~undefined
            else:
                each = jnp.where(active, jnp.where(undefined, math.nan, each), 0)
            stats[name] = each
    wide = ("selected_log_prob", "top_log_prob", "top_index", "loss")
    return {name: stats[name] if name in wide else jnp.squeeze(stats[name], -1) for name in spec.outputs}


def safe_selection(spec: LossSpec, selected: Array, dtype: Any) -> tuple[Array, Array]:
    """Class indices in [0, C), and for each 1, 0 where it is ``ignore_index``, or NaN where it is no class."""
    ignored = spec.ignore_index
    limits = jnp.iinfo(selected.dtype)
    padding = selected == jnp.asarray(ignored, selected.dtype) if limits.min <= ignored <= limits.max else False
    outside = (selected < 0) | (selected >= spec.kernel.num_classes)
    weight = jnp.where(padding, 0, jnp.where(outside, math.nan, 1)).astype(dtype)
    return jnp.where(outside, 0, selected).astype(jnp.int32), weight


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _graded(outputs: tuple[str, ...], x: Array, classes: Classes) -> tuple[Array, ...]:
    values = row_statistics.values(ALONG, row_statistics.solve(ALONG, x), outputs, classes, 0)
    return tuple(values[name] for name in outputs)


@_graded.defjvp
def _graded_jvp(outputs: tuple[str, ...], primals: Any, tangents: Any) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    x, classes = primals
    solved = row_statistics.solve(ALONG, x)
    values = row_statistics.values(ALONG, solved, outputs, classes, 0)
    changes = row_statistics.tangents(ALONG, solved, outputs, classes, tangents[0])
    return tuple(values[name] for name in outputs), tuple(changes[name] for name in outputs)
