"""The softcap, a tanh(x / a), and its derivative."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def apply_softcap(cap: float, x: Array) -> Array:
    """An infinite logit stays what it is: probability 0, or a row of NaN. Its derivative is 0."""
    return jnp.where(jnp.isinf(x), x, cap * jnp.tanh(x / cap))


@apply_softcap.defjvp
def _apply_softcap_jvp(cap: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return apply_softcap(cap, *primals), softcap_grad(cap, *primals) * tangents[0]


def softcap_grad(cap: float, x: Array) -> Array:
    """sech^2(x / a), without the cancellation of 1 - tanh^2."""
    decay = jnp.exp(-2 * jnp.abs(x / cap))
    return 4 * decay / (1 + decay) ** 2
