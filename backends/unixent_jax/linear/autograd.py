"""The sums of a chunked loss, as a JAX custom derivative.

The scalar reductions differentiate as the loss of a row does: the rule of the sum forms its gradients chunk by chunk in
the forward pass, while the chunk's logits are at hand, and returns <gradient, tangent>. That is three matrix products
in all, with nothing of the size of the logits kept for a backward pass. Where every position's loss has an upstream
gradient of its own, which is not known in the forward pass, a chunk's logits are formed again in the backward pass.

Everything is in the accumulation dtype: what is summed over chunks is rounded to half precision once, at the end.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from unixent.semantics import LARGE_MEAN_SCALE
from unixent_jax import kernel
from unixent_jax.collectives import sum_scalars
from unixent_jax.kernel import ClassAxis
from unixent_jax.kernel.rows import inner_with_tangent, is_known
from unixent_jax.linear.chunks import Chunk, chunk_logits, chunk_losses, join_rows, split_rows
from unixent_jax.linear.problem import LinearRows, LinearSpec
from unixent_jax.linear.products import product
from unixent_jax.logits.reduction import sums_of

# The classifier's gradient grows by this many parts in turn, so that no second array of its size is needed to add.
_NUM_PARTS = 8


def losses(spec: LinearSpec, rows: LinearRows) -> Array:
    """Each row's loss; in the backward pass the logits of a chunk are formed anew."""

    def of(chunk: Chunk) -> Array:
        return chunk_losses(spec.loss.kernel, rows, chunk, chunk_logits(rows, chunk), chunk.target)

    return join_rows(lax.map(rows.recomputed(of), split_rows(spec, rows)), rows)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def sums_of_losses(spec: LinearSpec, rows: LinearRows) -> tuple[Array, Array]:
    return sums_of(losses(spec, rows))


@partial(sums_of_losses.defjvp, symbolic_zeros=True)
def _sums_of_losses_jvp(spec: LinearSpec, primals: tuple[LinearRows], tangents: tuple[Any]) -> Any:
    (rows,), (given,) = primals, tangents
    names = ("hidden", "classifier", "bias", "target")
    wrt = tuple(name for name in names if is_known(getattr(given, name)))
    sums, grads = _sums_and_grads(spec, wrt, rows)
    tangent = jnp.zeros((), sums[0].dtype)
    for name, grad in grads.items():
        if name == "target":
            product = inner_with_tangent(grad, getattr(given, name), ClassAxis(1))
        else:
            product = grad * getattr(given, name)
        if name in ("hidden", "target"):
            # A selection, which keeps an infinite or NaN upstream gradient out of inactive rows.
            product = jnp.where(rows.active[:, None], product, 0)
        else:
            # The same where no row is active at all, so that a NaN mean over nothing has no gradient.
            product = jnp.where(jnp.any(rows.active), product, 0)
        tangent = tangent + jnp.sum(product)
    (tangent,) = sum_scalars(spec.loss.model_axes, tangent)
    return sums, (tangent, tangent * LARGE_MEAN_SCALE)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _sums_and_grads(
    spec: LinearSpec, wrt: tuple[str, ...], rows: LinearRows
) -> tuple[tuple[Array, Array], dict[str, Array]]:
    """The sums of the losses and the gradients of the first, as one function with a rule.

    Where JAX linearizes a rule that holds a bare scan, it inlines the rules of what the scan calls, without which
    reverse over reverse meets 0 * inf at a logit of -inf.
    """
    return _scan_chunks(spec, wrt, rows)


@_sums_and_grads.defjvp
def _sums_and_grads_jvp(spec: LinearSpec, wrt: tuple[str, ...], primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_scan_chunks, spec, wrt), primals, tangents)


def _scan_chunks(
    spec: LinearSpec, wrt: tuple[str, ...], rows: LinearRows
) -> tuple[tuple[Array, Array], dict[str, Array]]:
    def step(sums: dict[str, Any], chunk: Chunk) -> tuple[dict[str, Any], dict[str, Array]]:
        by_row = {}
        by_row["losses"], (logits_grad, *target_grad) = kernel.row_losses(
            chunk_logits(rows, chunk),
            chunk.target,
            rows.weight,
            chunk.position_weight,
            chunk.position_weight,
            spec.loss.kernel,
            ("logits", "target") if "target" in wrt else ("logits",),
        )
        if "hidden" in wrt:
            # A selection again: 0 times a NaN in the classifier.
            is_active = (chunk.position_weight != 0)[:, None]
            grad = product(logits_grad, rows.classifier, half_b=rows.half_classifier)
            by_row["hidden"] = jnp.where(is_active, grad, 0)
        if "target" in wrt:
            (by_row["target"],) = target_grad
        sums = dict(sums)
        if "classifier" in sums:
            sums["classifier"] = _add_product(sums["classifier"], logits_grad, chunk)
        if "bias" in sums:
            sums["bias"] = sums["bias"] + jnp.sum(logits_grad, 0)
        return sums, by_row

    zero = _zero(rows)
    sums: dict[str, Any] = {}
    if "classifier" in wrt:
        num_classes, width = rows.classifier.shape
        size, remainder = divmod(num_classes, _NUM_PARTS)
        sums["classifier"] = (
            jnp.broadcast_to(zero, (_NUM_PARTS, size, width)),
            jnp.broadcast_to(zero, (remainder, width)),
        )
    if "bias" in wrt:
        sums["bias"] = jnp.broadcast_to(zero, rows.classifier.shape[:1])
    sums, by_chunk = lax.scan(jax.checkpoint(step), sums, split_rows(spec, rows))
    results = {name: join_rows(array, rows) for name, array in by_chunk.items()}
    if "classifier" in sums:
        parts, remainder = sums["classifier"]
        sums["classifier"] = jnp.concatenate([parts.reshape(_NUM_PARTS * size, width), remainder])
    losses_sums = sums_of(results.pop("losses"))
    results.update(sums)
    return losses_sums, {name: results[name] for name in wrt}


def _add_product(sums: tuple[Array, Array], logits_grad: Array, chunk: Chunk) -> tuple[Array, Array]:
    """The sums and ``logits_grad.T @ hidden``, of which no more than a part exists by itself."""
    parts, remainder = sums
    size = parts.shape[1]

    def of(logits_grad: Array) -> Array:
        return product(logits_grad.T, chunk.hidden, half_b=chunk.half_hidden)

    def add(i: Array, parts: Array) -> Array:
        part = of(lax.dynamic_slice_in_dim(logits_grad, i * size, size, 1))
        return lax.dynamic_update_index_in_dim(parts, parts[i] + part, i, 0)

    remainder = remainder + of(logits_grad[:, _NUM_PARTS * size :])
    return lax.fori_loop(0, _NUM_PARTS, add, parts), remainder


def _zero(rows: LinearRows) -> Array:
    """0, varying over the axes of a mesh as the rows do: what a scan inside `jax.shard_map` must start from."""
    empty = [jnp.sum(leaf.reshape(-1)[:0]).astype(rows.hidden.dtype) for leaf in jax.tree.leaves(rows)]
    return sum(empty[1:], empty[0])
