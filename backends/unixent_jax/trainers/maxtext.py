"""MaxText's cross-entropy: ``maxtext.utils.max_utils.cross_entropy_with_logits = cross_entropy_with_logits``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unixent.positions import position_stats
from unixent_jax.trainers.dtypes import wide_dtype


def cross_entropy_with_logits(logits: Any, targets: Any, z_loss: float = 0.0) -> tuple[Any, Any]:
    """The loss of each token and its z-loss, as ``maxtext.utils.max_utils.cross_entropy_with_logits``.

    .. code-block:: text

        loss = sum over c of targets_c (lse - logits_c) + z_loss lse^2        total_z_loss = z_loss lse^2

    Args:
        logits: P + (C,), floating.
        targets: probabilities P + (C,), as MaxText's one-hot vectors; or class indices P, where -100 is ignored.
        z_loss: >= 0.

    Returns:
        ``(loss, total_z_loss)``, each P, in nats, float32 (float64 for logits of float64). The second is for logging
        and has no gradient.

    Raises:
        OptionError: a negative ``z_loss``.

    Example:
        >>> import jax.numpy as jnp
        >>> from unixent_jax.trainers.maxtext import cross_entropy_with_logits
        >>> loss, z = cross_entropy_with_logits(jnp.zeros((1, 2, 4)), jnp.array([[0, 3]]), z_loss=1.0)
        >>> print(loss, z)
        [[3.3081064 3.3081064]] [[1.921812 1.921812]]
    """
    logits = jnp.asarray(logits)
    outputs = ("loss", "logsumexp")
    stats = position_stats(logits, targets, outputs=outputs, z_loss=z_loss, dtype=wide_dtype(logits))
    return stats.loss, jax.lax.stop_gradient(z_loss * jnp.square(stats.logsumexp))
