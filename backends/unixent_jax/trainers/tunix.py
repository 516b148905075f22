"""Tunix's loss for ``PeftTrainer.with_loss_fn``, and the log-probabilities of its reinforcement learning."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from unixent.functions import cross_entropy
from unixent.positions import position_stats
from unixent_jax.trainers.dtypes import wide_dtype


def loss_fn(
    model: Any, input_tokens: Any, input_mask: Any, positions: Any, attention_mask: Any, images: Any = None
) -> Any:
    """The mean over the tokens that count of the loss of the next token, as PeftTrainer's own, in nats.

    ``trainer.with_loss_fn(loss_fn)`` puts it there; a partial application of another function of this signature can
    have the options of `unixent.cross_entropy`.

    Args:
        model: called as ``model(input_tokens, positions, None, attention_mask)``; returns logits (B, L, C) first.
        input_tokens: (B, L), class indices.
        input_mask: (B, L); 0 for tokens that are not predicted.
        positions, attention_mask: what the model takes.
        images: passed on to the model where it is given.

    Returns:
        0-d, float32 (float64 for logits of float64); 0 where no token counts.
    """
    extra = {} if images is None else {"images": images}
    logits, _ = model(input_tokens, positions, None, attention_mask, **extra)
    return cross_entropy(logits[:, :-1], input_tokens[:, 1:], mask=input_mask[:, 1:], dtype=wide_dtype(logits))


def selective_log_softmax(logits: Any, input_ids: Any) -> Any:
    """log softmax(logits) at ``input_ids``, as ``tunix.rl.common.selective_log_softmax``.

    Args:
        logits: P + (C,), floating.
        input_ids: P, class indices; -100 gives 0.

    Returns:
        P, in nats, float32 (float64 for logits of float64).

    Example:
        >>> import jax.numpy as jnp
        >>> from unixent_jax.trainers.tunix import selective_log_softmax
        >>> print(selective_log_softmax(jnp.array([[20.0, 0.0]]), jnp.array([0])))  # Tunix: 0
        [-2.0611537e-09]
    """
    return position_stats(jnp.asarray(logits), input_ids, dtype=wide_dtype(logits)).log_prob
