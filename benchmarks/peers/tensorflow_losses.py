"""`tf.nn.softmax_cross_entropy_with_logits` and, of indices, its sparse form. They give a loss per position; means and
sums are the caller's, as TensorFlow's guides write them: `tf.reduce_mean`, `tf.reduce_sum`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tensorflow as tf

from peers.adapting import REFUSALS, only, peer


def _softmax(logits: Any, target: Any, *, axis: int = -1, reduction: str = "mean") -> Any:
    if target.dtype.is_floating:
        loss = tf.nn.softmax_cross_entropy_with_logits(target, logits, axis=axis)
    else:
        only("axis", axis, -1, logits.ndim - 1)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits)
    only("reduction", reduction, "none", "sum", "mean")
    if reduction == "none":
        return loss
    return tf.reduce_sum(loss) if reduction == "sum" else tf.reduce_mean(loss)


softmax = replace(
    peer("tensorflow softmax_cross_entropy", _softmax),
    refusals=(*REFUSALS, tf.errors.InvalidArgumentError, tf.errors.UnimplementedError),
)
