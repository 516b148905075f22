"""The fused linear form: logits exist a chunk of positions at a time, in a scan, and never all at once.

The scalar reductions differentiate as the loss of a row does: the rule of the sum forms its gradients chunk by chunk in
the forward pass, while the chunk's logits are at hand, and returns <gradient, tangent>. That is three matrix products
in all, with nothing of the size of the logits kept for a backward pass. Where every position's loss has an upstream
gradient of its own, which is not known in the forward pass, a chunk's logits are formed again in the backward pass.

Everything is in the accumulation dtype: what is summed over chunks is rounded to half precision once, at the end.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from unixent.chunking import linear_chunk
from unixent_jax import _loss, _mesh, _spread

# The classifier's gradient grows by this many parts in turn, so that no second array of its size is needed to add.
_PARTS = 8
# Rows of a chunk where their number is unknown: what is missing to a whole chunk is filled up.
_MOST = 256


class Plan(NamedTuple):
    """What is static about a call."""

    loss: _loss.Plan
    chunk: int | None


class Arrays(NamedTuple):
    """What is traced; absent ones are None."""

    hidden: Array
    classifier: Array
    bias: Array | None
    target: Array
    weight: Array | None
    mask: Array | None
    normalizer: Array | float | None


class Rows(NamedTuple):
    """The same with the positions as rows, in the accumulation dtype but for class indices."""

    hidden: Array
    classifier: Array
    bias: Array | None
    target: Array
    weight: Array | None
    mask: Array | None
    live: Array


class Chunk(NamedTuple):
    """The rows of a chunk."""

    hidden: Array
    target: Array
    mask: Array
    live: Array


@partial(jax.jit, static_argnames=("plan", "result_dtype"))
def value(plan: Plan, result_dtype: str, arrays: Arrays) -> Array | tuple[Array, Array]:
    """The finished result."""
    return _loss.rounded(_reduced(plan, arrays), result_dtype)


@partial(jax.jit, static_argnames=("plan", "result_dtype", "wrt"))
def value_and_gradients(
    plan: Plan, result_dtype: str, wrt: tuple[str, ...], arrays: Arrays, upstream: Array | None
) -> tuple[Any, tuple[Array, ...]]:
    """The finished result and the gradients, formed from the unrounded one."""

    def of(*values: Array) -> Any:
        return _reduced(plan, arrays._replace(**dict(zip(wrt, values, strict=True))))

    result, pull = jax.vjp(of, *(getattr(arrays, name) for name in wrt))
    return _loss.rounded(result, result_dtype), pull(_loss.upstream_of(result, upstream))


@partial(jax.jit, static_argnames="plan")
def is_empty(plan: Plan, arrays: Arrays) -> Array:
    """Whether the denominator of the mean is 0."""
    return _loss.denominator_of(plan.loss, _rows(plan, arrays)[1], arrays.normalizer) == 0


def _reduced(plan: Plan, arrays: Arrays) -> Array | tuple[Array, Array]:
    over, positions = plan.loss.over, arrays.hidden.shape[:-1]
    if over is None or 0 in positions:
        return _reduced_here(plan, arrays)
    at = over.positions(len(positions))

    def part(spread: _spread.Spread, own: dict[str, Any]) -> Any:
        return _reduced_here(plan._replace(loss=_loss.inside(plan.loss, spread)), Arrays(**own))

    places = {
        "hidden": (*at, ()),
        "classifier": (over.model, ()),
        "bias": (over.model,),
        "target": at if plan.loss.indexed else (*at, over.model),
        **_loss.side_places(at),
    }
    whole = _loss.checked(plan.loss, arrays._asdict())
    return _mesh.spread(over, whole, places, positions, part, plan.loss.options.reduction == "none")


def _reduced_here(plan: Plan, arrays: Arrays) -> Array | tuple[Array, Array]:
    rows, denominators = _rows(plan, arrays)
    # Out of range was looked for in the whole target.
    plan = plan._replace(loss=plan.loss._replace(options=replace(plan.loss.options, validate="off")))
    if plan.loss.options.reduction == "none":
        return _losses(plan, rows).reshape(arrays.hidden.shape[:-1])
    return _loss.reduce_sums(plan.loss, _total(plan, rows), denominators, arrays.normalizer)


def _rows(plan: Plan, arrays: Arrays) -> tuple[Rows, Array]:
    """The problem by rows, and each row's part of the denominator."""
    wide = jnp.dtype(plan.loss.acc_dtype)
    weight = _loss.constant("weight", arrays.weight, wide)
    mask = _loss.constant("mask", arrays.mask, wide)
    mask = None if mask is None else mask.reshape(-1)
    hidden = arrays.hidden.reshape(-1, arrays.hidden.shape[-1]).astype(wide)
    if plan.loss.indexed:
        target = arrays.target.reshape(-1)
        y, denominators, live, _ = _loss.counted(plan.loss, target, mask)
        if weight is not None:
            denominators = denominators * weight[y]
    else:
        target = arrays.target.reshape(-1, arrays.target.shape[-1]).astype(wide)
        denominators = jnp.ones(hidden.shape[0], wide) if mask is None else mask
        live = denominators != 0
    bias = None if arrays.bias is None else arrays.bias.astype(wide)
    # 0 times a NaN in a dead row would reach the classifier's gradient.
    hidden = jnp.where(live[:, None], hidden, 0)
    classifier = arrays.classifier.astype(wide)
    # What a gradient is summed over inside `jax.shard_map` is settled here, so that no chunk's is sent by itself.
    axes = frozenset().union(*map(_spread.varying, (hidden, classifier, target)))
    hidden, classifier = (_spread.spread_out(array, axes) for array in (hidden, classifier))
    bias = None if bias is None else _spread.spread_out(bias, axes)
    return Rows(hidden, classifier, bias, target, weight, mask, live), denominators


def _losses(plan: Plan, rows: Rows) -> Array:
    """Each row's loss v l; in the backward pass the logits of a chunk are formed anew."""

    def of(chunk: Chunk) -> Array:
        return _chunk_losses(plan, rows, chunk, _logits(rows, chunk), chunk.target)

    return _joined(lax.map(jax.checkpoint(of), _chunks(plan, rows)), rows)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _total(plan: Plan, rows: Rows) -> Array:
    """The sum of the losses."""
    return jnp.sum(_losses(plan, rows))


@partial(_total.defjvp, symbolic_zeros=True)
def _total_jvp(plan: Plan, primals: tuple[Rows], tangents: tuple[Any]) -> tuple[Array, Array]:
    (rows,), (given,) = primals, tangents
    names = ("hidden", "classifier", "bias", "target")
    wrt = tuple(name for name in names if _known(getattr(given, name)))
    total, gradients = _total_and_gradients(plan, wrt, rows)
    moved = jnp.zeros((), total.dtype)
    for name, gradient in gradients.items():
        product = gradient * getattr(given, name)
        if name in ("hidden", "target"):
            # A selection, which keeps an infinite or NaN upstream gradient out of dead rows.
            product = jnp.where(rows.live[:, None], product, 0)
        else:
            # The same where no row is live at all, so that a NaN mean over nothing moves nothing.
            product = jnp.where(jnp.any(rows.live), product, 0)
        moved = moved + jnp.sum(product)
    return total, _spread.summed(plan.loss.spread.model, moved)[0]


def _known(tangent: Any) -> bool:
    return tangent is not None and not isinstance(tangent, SymbolicZero)


def _total_and_gradients(plan: Plan, wrt: tuple[str, ...], rows: Rows) -> tuple[Array, dict[str, Array]]:
    """The sum of the losses and its gradients."""

    def step(sums: dict[str, Any], chunk: Chunk) -> tuple[dict[str, Any], dict[str, Array]]:
        losses, pull = jax.vjp(partial(_chunk_losses, plan, rows, chunk), _logits(rows, chunk), chunk.target)
        gradient, for_target = pull(jnp.ones_like(losses))
        found = {"losses": losses}
        if "hidden" in wrt:
            # A selection again: 0 times a NaN in the classifier.
            found["hidden"] = jnp.where(chunk.live[:, None], gradient @ rows.classifier, 0)
        if "target" in wrt:
            found["target"] = for_target
        sums = dict(sums)
        if "classifier" in sums:
            sums["classifier"] = _with_product(sums["classifier"], gradient, chunk.hidden)
        if "bias" in sums:
            sums["bias"] = sums["bias"] + jnp.sum(gradient, 0)
        return sums, found

    zero = _zero(rows)
    sums: dict[str, Any] = {}
    if "classifier" in wrt:
        classes, width = rows.classifier.shape
        part, rest = divmod(classes, _PARTS)
        sums["classifier"] = jnp.broadcast_to(zero, (_PARTS, part, width)), jnp.broadcast_to(zero, (rest, width))
    if "bias" in wrt:
        sums["bias"] = jnp.broadcast_to(zero, rows.classifier.shape[:1])
    sums, found = lax.scan(jax.checkpoint(step), sums, _chunks(plan, rows))
    found = {name: _joined(value, rows) for name, value in found.items()}
    if "classifier" in sums:
        parts, rest = sums["classifier"]
        sums["classifier"] = jnp.concatenate([parts.reshape(-1, parts.shape[-1]), rest])
    total = jnp.sum(found.pop("losses"))
    found.update(sums)
    return total, {name: found[name] for name in wrt}


def _with_product(sums: tuple[Array, Array], gradient: Array, hidden: Array) -> tuple[Array, Array]:
    """The sums and ``gradient.T @ hidden``, of which no more than a part exists by itself."""
    parts, rest = sums
    size = parts.shape[1]

    def add(i: Array, parts: Array) -> Array:
        product = lax.dynamic_slice_in_dim(gradient, i * size, size, 1).T @ hidden
        return lax.dynamic_update_index_in_dim(parts, parts[i] + product, i, 0)

    return lax.fori_loop(0, _PARTS, add, parts), rest + gradient[:, _PARTS * size :].T @ hidden


def _zero(rows: Rows) -> Array:
    """0, varying over the axes of a mesh as the rows do: what a scan inside `jax.shard_map` must start from."""
    empty = [jnp.sum(leaf.reshape(-1)[:0]).astype(rows.hidden.dtype) for leaf in jax.tree.leaves(rows)]
    return sum(empty[1:], empty[0])


def _logits(rows: Rows, chunk: Chunk) -> Array:
    logits = chunk.hidden @ rows.classifier.T
    return logits if rows.bias is None else logits + rows.bias


def _chunk_losses(plan: Plan, rows: Rows, chunk: Chunk, logits: Array, target: Array) -> Array:
    arrays = _loss.Arrays(logits, target, rows.weight, chunk.mask, None)
    return _loss.losses(plan.loss, arrays).losses[:, 0]


def _chunks(plan: Plan, rows: Rows) -> Chunk:
    """The rows in chunks of equal size; what the last one lacks is filled with dead rows."""
    count, width = rows.hidden.shape
    known = isinstance(count, int)  # not so for a symbolic dimension of `jax.export`
    # The exponentials lie beside the logits that they are of: a third fewer rows than where there is one array only.
    most, classes = count if known else plan.chunk or _MOST, rows.classifier.shape[0] * 3 // 2
    size = linear_chunk(most, classes, width, rows.hidden.dtype.itemsize, plan.chunk)
    chunks = -(-count // size)
    if known:
        size = max(1, -(-count // max(1, chunks)))

    def split(value: Array) -> Array:
        padded = jnp.pad(value, [(0, chunks * size - count), *[(0, 0)] * (value.ndim - 1)])
        return padded.reshape(chunks, size, *value.shape[1:])

    mask = jnp.ones(count, rows.hidden.dtype) if rows.mask is None else rows.mask
    return Chunk(split(rows.hidden), split(rows.target), split(mask), split(rows.live))


def _joined(chunks: Array, rows: Rows) -> Array:
    return chunks.reshape(-1, *chunks.shape[2:])[: rows.hidden.shape[0]]
