"""The jitted programs of a call, for every form of the loss.

``loss`` is a function of (spec, arrays) with the result in the accumulation dtype: that of logits, the fused linear
form, or either of them over a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@partial(jax.jit, static_argnums=(0, 1, 2))
def value(loss: Callable[..., Any], spec: Any, result_dtype: str, arrays: Any) -> Any:
    """The finished result."""
    return _rounded(loss(spec, arrays), result_dtype)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def value_and_grads(
    loss: Callable[..., Any],
    spec: Any,
    result_dtype: str,
    wrt: tuple[str, ...],
    arrays: Any,
    grad_output: Array | None,
) -> tuple[Any, tuple[Array, ...]]:
    """The finished result and the gradients, formed from the unrounded one."""

    def of(*differentiated: Array) -> Any:
        return loss(spec, arrays._replace(**dict(zip(wrt, differentiated, strict=True))))

    result, vjp = jax.vjp(of, *(getattr(arrays, name) for name in wrt))
    if grad_output is None:
        return _rounded(result, result_dtype), vjp(jnp.ones_like(result))
    # Of the dtype of the result, and differing over the same axes of a mesh.
    return _rounded(result, result_dtype), vjp(grad_output.astype(result.dtype) + jnp.zeros_like(result))


def _rounded(result: Any, dtype: str) -> Any:
    """The finished result in its own dtype."""
    scalar_type = getattr(jnp, dtype)  # MindSpore, once imported, has NumPy's name "bfloat16" mean a type of its own
    return jax.tree.map(lambda array: array.astype(scalar_type), result)
