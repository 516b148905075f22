"""The loss from its rows: capping, weighting, counting, reducing, in plain JAX operations around the row kernels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.experimental import checkify

from unixent.arguments import not_constant
from unixent.options import LossOptions
from unixent_jax import _mesh, _rows, _spread, _stats
from unixent_jax._softcap import capped


class Plan(NamedTuple):
    """What is static about a call: the jitted functions are traced once for each plan and set of shapes."""

    options: LossOptions
    axis: int
    classes: int
    indexed: bool
    acc_dtype: str
    terms: bool
    spread: _spread.Spread = _spread.Spread()  # of the arrays at hand, inside `jax.shard_map`
    over: _mesh.Over | None = None  # of whole arrays

    @property
    def lies(self) -> _stats.Classes:
        return _stats.Classes(self.axis, self.spread.model)


class Arrays(NamedTuple):
    """What is traced; absent ones are None."""

    logits: Array
    target: Array
    weight: Array | None
    mask: Array | None
    normalizer: Array | float | None


class Positions(NamedTuple):
    """The counted losses and their weights, with the class axis kept as 1."""

    losses: Array  # v l
    denominators: Array  # d


class Counted(NamedTuple):
    """What an index target, ``ignore_index`` and mask say of positions."""

    y: Array  # the class, in [0, C)
    v: Array
    live: Array  # has a loss
    stray: Array  # an index out of range, whose loss is NaN


def reduced(plan: Plan, arrays: Arrays) -> Array | tuple[Array, Array]:
    """The result in the accumulation dtype."""
    shape = arrays.logits.shape
    positions = shape[: plan.axis] + shape[plan.axis + 1 :]
    if plan.over is None or 0 in positions:
        return reduce(plan, losses(plan, arrays), arrays.normalizer)
    rows = plan.over.positions(len(positions))
    full = (*rows[: plan.axis], plan.over.model, *rows[plan.axis :])

    def part(spread: _spread.Spread, own: dict[str, Any]) -> Any:
        return reduced(inside(plan, spread), Arrays(**own))

    return _mesh.spread(
        plan.over,
        checked(plan, arrays._asdict()),
        {"logits": full, "target": rows if plan.indexed else full, **side_places(rows)},
        positions,
        part,
        plan.options.reduction == "none",
    )


def side_places(rows: _mesh.Place) -> dict[str, _mesh.Place]:
    """Where what both forms have lies over a mesh."""
    return {"mask": rows, "weight": ((),), "normalizer": ()}


def checked(plan: Plan, arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a whole problem, looked at where that is only possible as long as they are whole."""
    if plan.indexed and plan.options.validate == "full":
        counted(plan, arrays["target"], None)
    wide = jnp.dtype(plan.acc_dtype)
    return {**arrays, **{name: constant(name, arrays[name], wide) for name in ("weight", "mask", "normalizer")}}


def inside(plan: Plan, spread: _spread.Spread) -> Plan:
    """The plan of a device's part."""
    return plan._replace(spread=spread, over=None, options=replace(plan.options, validate="off"))


def losses(plan: Plan, arrays: Arrays) -> Positions:
    """Each position's loss v l and its part d of the denominator, in the accumulation dtype."""
    wide = jnp.dtype(plan.acc_dtype)
    weight = constant("weight", arrays.weight, wide)
    mask = constant("mask", arrays.mask, wide)
    if mask is not None:
        mask = jnp.expand_dims(mask, plan.axis)
    x = arrays.logits.astype(wide)
    solve = _index_positions if plan.indexed else _probability_positions
    return solve(plan, x, arrays.target, weight, mask)


def counted(plan: Plan, target: Array, mask: Array | None) -> Counted:
    """What is known of positions before their logits are; ``mask``, in the accumulation dtype, has target's shape."""
    valid = _in_range(target, plan.classes)
    exists = ~_equals(target, plan.options.ignore_index)
    if plan.options.validate == "full":
        _debug_check(plan, valid | ~exists, target)
    stray = exists & ~valid
    v = exists.astype(plan.acc_dtype) if mask is None else jnp.where(exists, mask, 0)
    return Counted(jnp.where(valid, target, 0).astype(jnp.int32), v, (v != 0) | stray, stray)


def _index_positions(plan: Plan, x: Array, target: Array, weight: Array | None, mask: Array | None) -> Positions:
    y, v, live, stray = counted(plan, jnp.expand_dims(target, plan.axis), mask)
    w, w_y = _per_class(plan, x, weight), jnp.ones((), x.dtype)
    if weight is not None:
        # Inside `jax.shard_map` the whole weight is at hand.
        near = plan.spread.model or _stats.alone(x)
        w_y = weight[y] if near else _stats.pick(jnp.broadcast_to(w, x.shape), y, plan.lies)
    # A factor of NaN makes the value and the whole gradient row of a stray index NaN.
    marked = jnp.where(stray, jnp.nan, 1).astype(x.dtype)
    x = _held(plan, capped(plan.options.softcap, x, live), -jnp.inf)

    options, s = _rows.RowOptions(plan.lies, plan.options.z_loss), plan.options.label_smoothing
    if s == 0:
        rows = _rows.index_loss(options, x, y, marked * w_y, live)
    else:
        base = s / plan.classes * w
        t = marked * jnp.where(_stats.hits(x, y, plan.lies), (1 - s) * w_y + base, base)
        rows = _rows.mixed_loss(options, x, _held(plan, t, 0), jnp.ones((), x.dtype), live)
    return Positions(_count(rows, mask, live), v * w_y)


def _probability_positions(plan: Plan, x: Array, target: Array, weight: Array | None, mask: Array | None) -> Positions:
    v = jnp.ones((), x.dtype) if mask is None else mask
    live = v != 0
    x = _held(plan, capped(plan.options.softcap, x, live), -jnp.inf)
    s = plan.options.label_smoothing
    w = _per_class(plan, x, weight)
    t = _held(plan, w * ((1 - s) * target.astype(x.dtype) + s / plan.classes), 0)
    options = _rows.RowOptions(plan.lies, plan.options.z_loss)
    rows = _rows.mixed_loss(options, x, t, w if s < 1 else jnp.zeros((), x.dtype), live)
    return Positions(_count(rows, mask, live), jnp.broadcast_to(v, rows.shape))


def _per_class(plan: Plan, x: Array, weight: Array | None) -> Array:
    """The weight of each class that is here, along the class axis."""
    if weight is None:
        return jnp.ones((), x.dtype)
    weight = _spread.own_share(weight, plan.spread.model, x.shape[plan.axis])
    return weight.reshape([-1 if i == plan.axis else 1 for i in range(x.ndim)])


def _held(plan: Plan, x: Array, otherwise: float) -> Array:
    """x at the classes that exist: what the last devices hold beyond them is padding."""
    if not plan.spread.model or plan.lies.count(x) == plan.classes:
        return x
    return jnp.where(_stats.indices(x, x, plan.lies) < plan.classes, x, otherwise)


def _count(rows: Array, mask: Array | None, live: Array) -> Array:
    # The outer selection keeps an infinite or NaN upstream gradient out of dead rows.
    return jnp.where(live, rows if mask is None else mask * rows, 0)


def reduce(plan: Plan, positions: Positions, normalizer: Array | float | None) -> Array | tuple[Array, Array]:
    """The reduction, still in the accumulation dtype; both sums where the plan asks for terms."""
    if plan.options.reduction == "none":
        return jnp.squeeze(positions.losses, plan.axis)
    return reduce_sums(plan, jnp.sum(positions.losses), positions.denominators, normalizer)


def reduce_sums(
    plan: Plan, numerator: Array, denominators: Array, normalizer: Array | float | None
) -> Array | tuple[Array, Array]:
    """The reduction to a scalar, from the sum of the losses."""
    tokens = plan.spread.tokens
    if plan.terms:
        return _spread.summed(tokens, numerator, jnp.sum(denominators))
    if plan.options.reduction == "sum":
        return _spread.summed(tokens, numerator)[0]
    if normalizer is None:
        numerator, denominator = _spread.summed(tokens, numerator, jnp.sum(denominators))
    else:
        (numerator,) = _spread.summed(tokens, numerator)
        denominator = denominator_of(plan, denominators, normalizer)
    empty = denominator == 0
    if plan.options.on_empty == "zero":
        return jnp.where(empty, 0, numerator / jnp.where(empty, 1, denominator))
    return numerator / jnp.where(empty, jnp.nan, denominator)


def denominator_of(plan: Plan, denominators: Array, normalizer: Array | float | None) -> Array:
    """What a mean is divided by."""
    given = constant("normalizer", normalizer, jnp.dtype(plan.acc_dtype))
    return jnp.sum(denominators) if given is None else given


@partial(jax.jit, static_argnames=("plan", "result_dtype"))
def value(plan: Plan, result_dtype: str, arrays: Arrays) -> Array | tuple[Array, Array]:
    """The finished result."""
    return rounded(reduced(plan, arrays), result_dtype)


@partial(jax.jit, static_argnames=("plan", "result_dtype", "wrt"))
def value_and_gradients(
    plan: Plan, result_dtype: str, wrt: tuple[str, ...], arrays: Arrays, upstream: Array | None
) -> tuple[Any, tuple[Array, ...]]:
    """The finished result and the gradients, formed from the unrounded one."""

    def of(*values: Array) -> Any:
        return reduced(plan, arrays._replace(**dict(zip(wrt, values, strict=True))))

    result, pull = jax.vjp(of, *(getattr(arrays, name) for name in wrt))
    return rounded(result, result_dtype), pull(upstream_of(result, upstream))


def upstream_of(result: Array, given: Array | None) -> Array:
    """The upstream gradient of a result, of which it has the dtype and differs over the same axes."""
    return jnp.ones_like(result) if given is None else given.astype(result.dtype) + jnp.zeros_like(result)


@partial(jax.jit, static_argnames="plan")
def is_empty(plan: Plan, arrays: Arrays) -> Array:
    """Whether the denominator of the mean is 0."""
    return denominator_of(plan, losses(plan, arrays).denominators, arrays.normalizer) == 0


def rounded(result: Any, dtype: str) -> Any:
    """The finished result in its own dtype."""
    kind = getattr(jnp, dtype)  # MindSpore, once imported, has NumPy's name "bfloat16" mean a type of its own
    return jax.tree.map(lambda array: array.astype(kind), result)


def _in_range(y: Array, classes: int) -> Array:
    """0 <= y < classes, compared without leaving y's dtype."""
    every = isinstance(classes, int) and classes > jnp.iinfo(y.dtype).max
    return y >= 0 if every else (y >= 0) & (y < classes)


def _equals(y: Array, value: int) -> Array:
    limits = jnp.iinfo(y.dtype)
    return y == jnp.asarray(value, y.dtype) if limits.min <= value <= limits.max else jnp.zeros(y.shape, bool)


def _debug_check(plan: Plan, good: Array, y: Array) -> None:
    first = jnp.argmin(good.reshape(-1))
    checkify.debug_check(
        jnp.all(good),
        f"target: expected class indices in [0, {plan.classes}) or ignore_index={plan.options.ignore_index}; "
        "got {value} at flat position {position}",
        value=y.reshape(-1)[first],
        position=first,
    )


def constant(name: str, value: Array | float | None, dtype: Any) -> Array | None:
    """A side argument in ``dtype``, which refuses to be differentiated."""
    return None if value is None else _barred(name, jnp.asarray(value)).astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _barred(name: str, value: Array) -> Array:
    return value


@partial(_barred.defjvp, symbolic_zeros=True)
def _barred_jvp(name: str, primals: Any, tangents: Any) -> Any:
    if not isinstance(tangents[0], SymbolicZero):
        raise not_constant(name)
    return primals[0], tangents[0]
