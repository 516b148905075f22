"""The dtype of what these functions return."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp


def wide_dtype(array: Any) -> str:
    """float32, or float64 for float64: half precision is for logits, not for losses and log-probabilities."""
    return "float64" if array.dtype == jnp.float64 else "float32"
