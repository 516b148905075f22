"""The statistics of rows in JAX, with the derivative rules of `unixent.row_statistics`, wherever the classes are.

A row on one device is worked by gathers. The compiler may have split it over the devices of a mesh, where a gather
would collect it: there the same is done by masks. Inside `jax.shard_map` every device holds some classes of each row,
and `unixent.share_statistics` reduces what they find.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import zero_from_primal

from unixent import row_statistics
from unixent.row_statistics import GRADED, Along, Classes, Solved
from unixent.share_statistics import Processes, along_shares
from unixent_jax.kernel.class_axis import ClassAxis, can_gather, class_indices, max_and_argmax, take
from unixent_jax.kernel.rows import product, times_tangent


class RowRequest(NamedTuple):
    """What is asked of rows, without the loss. Static."""

    outputs: tuple[str, ...]
    k: int
    num_classes: int
    classes: ClassAxis


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def row_outputs(request: RowRequest, x: Array, chosen: Classes) -> tuple[dict[str, Array], Array]:
    """The outputs of rows P + (C,), whose padding is -inf, and which rows have none."""
    along = _along(request, x)
    return _outputs(request, along, row_statistics.solve(along, x), chosen)


@row_outputs.defjvp
def _row_outputs_jvp(request: RowRequest, primals: Any, tangents: Any) -> Any:
    x, chosen = primals
    along = _along(request, x)
    rows = row_statistics.solve(along, x)
    values, undefined = _outputs(request, along, rows, chosen)
    graded = tuple(name for name in request.outputs if name in GRADED)
    changes = row_statistics.tangents(along, rows, graded, chosen, tangents[0])
    zeros, none = zero_from_primal((values, undefined))
    return (values, undefined), (zeros | changes, none)


def _outputs(request: RowRequest, along: Along, rows: Solved, chosen: Classes) -> tuple[dict[str, Array], Array]:
    values: dict[str, Array] = {}
    fixed = jax.tree.map(lax.stop_gradient, rows)
    for of, is_graded in ((rows, True), (fixed, False)):
        names = tuple(name for name in request.outputs if (name in GRADED) == is_graded)
        values |= row_statistics.values(along, of, names, chosen, request.k)
    return values, jnp.isnan(fixed.stats.loss)


def _along(request: RowRequest, x: Array) -> Along:
    along, classes = GATHERS if can_gather(x, ClassAxis(x.ndim - 1)) else MASKS, request.classes
    if not classes.is_sharded:
        return along
    axes = classes.shard_axes
    processes = Processes(
        classes.vocab_start(x),
        request.num_classes,
        sum=lambda x: lax.psum(x, axes),
        max=lambda x: lax.pmax(lax.stop_gradient(x), axes),
        gather=partial(_gather, axes),
    )
    return along_shares(along, processes)


def _gather(axes: tuple[str, ...], x: Array) -> Array:
    """P + (n,) of all devices, as a sum, which JAX knows to be the same on all of them."""
    devices = lax.broadcasted_iota(jnp.int32, (1,) * (x.ndim - 1) + (lax.axis_size(axes), 1), x.ndim - 1)
    slots = jnp.where(devices == lax.axis_index(axes), x[..., None, :], 0)
    return lax.psum(slots.reshape(*x.shape[:-1], -1), axes)


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


GATHERS = Along(
    xp=jnp,
    take=partial(jnp.take_along_axis, axis=-1, mode="promise_in_bounds"),
    sum=partial(jnp.sum, axis=-1, keepdims=True),
    max=partial(jnp.max, axis=-1, keepdims=True),
    argmax=lambda x: lax.argmax(x, x.ndim - 1, jnp.int32)[..., None],
    top=_top,
    classes=lambda x: lax.broadcasted_iota(jnp.int32, (1,) * (x.ndim - 1) + x.shape[-1:], x.ndim - 1),
    add_at=_add_at,
    product=_product,
    constant=lax.stop_gradient,
    astype=lambda x, name: x.astype(getattr(jnp, name)),
)


def _masked_take(x: Array, index: Array) -> Array:
    classes = ClassAxis(x.ndim - 1)
    if index.shape[-1] == 1:
        return take(x, index, classes)
    # One after the other: all masks at once would be K arrays of the size of x.
    each = lax.map(lambda one: take(x, one[..., None], classes)[..., 0], jnp.moveaxis(index, -1, 0))
    return jnp.moveaxis(each, 0, -1)


def _masked_top(x: Array, k: int) -> Array:
    """k maxima in turn."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return _top(x, k)  # of classes, which lie on every device
    classes = ClassAxis(x.ndim - 1)
    first = max_and_argmax(x, classes)
    if k == 1:
        return first[1]

    def following(last: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        value, index = last
        indices = class_indices(x, index, classes)
        is_after = (x < value) | ((x == value) & (indices > index))
        value = jnp.max(jnp.where(is_after, x, -jnp.inf), -1, keepdims=True)
        is_next = is_after & (x == value)
        index = jnp.min(jnp.where(is_next, indices, x.shape[-1]), -1, keepdims=True)
        return (value, index), index[..., 0]

    _, others = lax.scan(following, first, length=k - 1)
    return jnp.concatenate([first[1], jnp.moveaxis(others, 0, -1)], -1)


MASKS = GATHERS._replace(
    take=_masked_take,
    argmax=lambda x: max_and_argmax(lax.stop_gradient(x), ClassAxis(x.ndim - 1))[1],
    top=_masked_top,
)
