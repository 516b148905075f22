"""The static side of the pass over the logits."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from unixent.logit_transform import LogitTransform
from unixent_jax.kernel.class_axis import ClassAxis


class KernelSpec(NamedTuple):
    """What is static about the pass.

    Attributes:
        class_axis: where the classes are.
        num_classes: C of the whole vocabulary; what the last devices hold beyond it is padding.
        acc_dtype: dtype of every exp, log and sum.
        label_smoothing, z_loss: the options of those names.
        transform: what becomes of the logits first.
        is_widened: whether x is half precision in memory, and only XLA's own operators widen it as they read it.
    """

    class_axis: ClassAxis
    num_classes: int
    acc_dtype: str
    label_smoothing: float
    z_loss: float
    transform: LogitTransform
    is_widened: bool = False


def is_index(target: Array) -> bool:
    """Whether a target holds class indices, rather than probabilities."""
    return bool(jnp.issubdtype(target.dtype, jnp.integer))
