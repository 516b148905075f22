"""optax's cross-entropies, with ``axis`` and ``where``: change the import."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from unixent.functions import cross_entropy


def softmax_cross_entropy_with_integer_labels(
    logits: Any, labels: Any, axis: int | tuple[int, ...] = -1, where: Any = None
) -> Any:
    """The loss of each position for class indices, as ``optax.softmax_cross_entropy_with_integer_labels``.

    Args:
        logits: floating; the classes lie along ``axis``.
        labels: P, the shape of logits without ``axis``; -100 is ignored. For several axes, indices of them flattened.
        axis: one axis, or several that hold the classes together.
        where: P, positions that count; or of the shape of logits, classes that exist. False: the position's loss is 0,
            or the class has probability 0.

    Returns:
        P, in nats, of the dtype of logits.

    Raises:
        TargetRangeError: a label that is no class, where it can be read. Under ``jit`` its loss is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from unixent_jax.trainers.optax import softmax_cross_entropy_with_integer_labels
        >>> print(softmax_cross_entropy_with_integer_labels(jnp.array([[20.0, 0.0]]), jnp.array([0])))  # optax: 0
        [2.0611537e-09]
    """
    logits, axis, _, mask = _arranged(logits, None, axis, where)
    return cross_entropy(logits, labels, axis=axis, mask=mask, reduction="none")


def softmax_cross_entropy(logits: Any, labels: Any, axis: int | tuple[int, ...] | None = -1, where: Any = None) -> Any:
    """The loss of each position for class probabilities, as ``optax.softmax_cross_entropy``.

    Args:
        logits: floating; the classes lie along ``axis``.
        labels: probabilities, of the shape of logits.
        axis: one axis, several, or None for all.
        where: as in `softmax_cross_entropy_with_integer_labels`.

    Returns:
        The shape of logits without ``axis``, in nats, of the dtype of logits.

    Example:
        >>> import jax.numpy as jnp
        >>> from unixent_jax.trainers.optax import softmax_cross_entropy
        >>> print(softmax_cross_entropy(jnp.array([0.0, -jnp.inf, 0.0]), jnp.array([1.0, 0.0, 0.0])))  # optax: nan
        0.6931472
    """
    axis = tuple(range(jnp.ndim(logits))) if axis is None else axis
    logits, axis, labels, mask = _arranged(logits, labels, axis, where)
    return cross_entropy(logits, labels, axis=axis, mask=mask, reduction="none")


def _arranged(logits: Any, labels: Any, axis: int | tuple[int, ...], where: Any) -> tuple[Any, int, Any, Any]:
    """Logits and probabilities with all classes on one axis, that axis, and the mask of positions."""
    logits = jnp.asarray(logits)
    if labels is not None:
        labels = jnp.broadcast_to(jnp.asarray(labels, logits.dtype), logits.shape)
    mask = None
    if where is not None:
        where = jnp.asarray(where, bool)
        if where.ndim == logits.ndim:
            where = jnp.broadcast_to(where, logits.shape)
            mask = where.any(axis)
            logits = jnp.where(where, logits, -jnp.inf)
            labels = None if labels is None else jnp.where(where, labels, 0)
        else:
            mask = where
    if isinstance(axis, int):
        return logits, axis, labels, mask
    last = tuple(range(-len(axis), 0))
    together = [
        None if each is None else jnp.moveaxis(each, axis, last).reshape(*_without(each.shape, axis), -1)
        for each in (logits, labels)
    ]
    return together[0], -1, together[1], mask


def _without(shape: tuple[int, ...], axis: tuple[int, ...]) -> tuple[int, ...]:
    dropped = {each % len(shape) for each in axis}
    return tuple(size for index, size in enumerate(shape) if index not in dropped)
