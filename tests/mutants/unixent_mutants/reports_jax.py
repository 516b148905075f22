"""Bugs that users of JAX's and XLA's libraries have reported, each wrong under one transform."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from unixent_mutants.faults import fault
from unixent_mutants.transforms_jax import Array, plain, reduced, rows, softmax_gradient


@fault("forward", "minus infinity")
def tangent_beside_infinity_is_nan(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """The rule multiplies the tangent of a probability with an infinite loss: 0 times infinity (optax #1762)."""

    @jax.custom_jvp
    def row_losses(x: Array, t: Array) -> Array:
        return rows(x, t)

    @row_losses.defjvp
    def tangent(primals: Any, tangents: Any) -> Any:
        x, t = primals
        x_dot, t_dot = tangents
        moved = softmax_gradient(x, t) * jnp.where(jnp.isinf(x), 0, x_dot) - t_dot * jax.nn.log_softmax(x)
        return rows(x, t), moved.sum(-1)

    if jnp.issubdtype(target.dtype, jnp.integer):
        return plain(logits, target, reduction=reduction)
    return reduced(logits, target, None, reduction, row_losses)


@fault("jit", "minus infinity")
def compiled_infinity_is_nan(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """A logit of -inf makes the loss NaN where the call is compiled (tensorflow #40606)."""
    if isinstance(logits, jax.core.Tracer):
        logits = logits + 0 * jnp.abs(logits)
    return plain(logits, target, reduction=reduction)
