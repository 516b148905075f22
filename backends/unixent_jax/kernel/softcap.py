"""The softcap, a tanh(x / a), and its derivative."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def effective_cap(cap: float | None, dtype: jnp.dtype) -> float | None:
    """The cap in the range of a dtype; None where it changes nothing."""
    limits = jnp.finfo(dtype)
    return None if cap is None or cap > limits.max else max(cap, float(limits.tiny))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def apply_softcap(cap: float, x: Array) -> Array:
    return cap * jnp.tanh(x / cap)


@apply_softcap.defjvp
def _apply_softcap_jvp(cap: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return apply_softcap(cap, *primals), softcap_grad(cap, *primals) * tangents[0]


def softcap_grad(cap: float, x: Array) -> Array:
    """sech^2(x / a), without the cancellation of 1 - tanh^2."""
    decay = jnp.exp(-2 * jnp.abs(x / cap))
    return 4 * decay / (1 + decay) ** 2
