"""optax's softmax cross-entropies. They give a loss per position; means and sums are the caller's, as its examples
write them: `.mean()`, `.sum()`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from peers.adapting import only, peer
from unixent_conformance.harness import Unsupported


def _integer(
    logits: jax.Array, target: jax.Array, *, mask: jax.Array | None = None, axis: int = -1, reduction: str = "mean"
) -> jax.Array:
    if jnp.issubdtype(target.dtype, jnp.floating):
        raise Unsupported("takes class indices only")
    where = _where(mask)
    return _reduce(
        optax.softmax_cross_entropy_with_integer_labels(logits, target, axis=axis, where=where), reduction, where
    )


def _dense(
    logits: jax.Array,
    target: jax.Array,
    *,
    mask: jax.Array | None = None,
    axis: int = -1,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> jax.Array:
    where = _where(mask)
    labels = _labels(logits, target, axis, label_smoothing)
    return _reduce(optax.softmax_cross_entropy(logits, labels, axis=axis, where=where), reduction, where)


def _safe(
    logits: jax.Array, target: jax.Array, *, axis: int = -1, reduction: str = "mean", label_smoothing: float = 0.0
) -> jax.Array:
    only("axis", axis, -1, logits.ndim - 1)
    labels = _labels(logits, target, -1, label_smoothing)
    return _reduce(optax.safe_softmax_cross_entropy(logits, labels), reduction, None)


def _labels(logits: jax.Array, target: jax.Array, axis: int, label_smoothing: float) -> jax.Array:
    """Indices become one-hot rows, as optax's documentation has it; smoothing is optax's own."""
    if not jnp.issubdtype(target.dtype, jnp.floating):
        target = jax.nn.one_hot(target, logits.shape[axis], dtype=logits.dtype, axis=axis)
    if not label_smoothing:
        return target
    only("axis", axis, -1, logits.ndim - 1)
    return optax.smooth_labels(target, label_smoothing)


def _where(mask: jax.Array | None) -> jax.Array | None:
    if mask is not None and mask.dtype != jnp.bool_:
        raise Unsupported("where takes booleans")
    return mask


def _reduce(loss: jax.Array, reduction: str, where: jax.Array | None) -> jax.Array:
    only("reduction", reduction, "none", "sum", "mean")
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.mean(where=where)


integer = peer("optax integer", _integer, "optax")
dense = peer("optax dense", _dense, "optax")
safe = peer("optax safe", _safe, "optax")
