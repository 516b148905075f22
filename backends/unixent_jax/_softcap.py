"""The softcap, a tanh(x / a), and its derivative."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from unixent_jax import _stats


def capped(cap: float | None, x: Array, live: Array) -> Array:
    """The logits to go by; where there is a cap, dead rows hold 0."""
    limits = jnp.finfo(x.dtype)
    if cap is None or cap > limits.max:
        return x
    # Dead rows are cleared first: the cap's slope at NaN would turn their zero gradient into NaN.
    return _cap(max(cap, float(limits.tiny)), _stats.select(live, x))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _cap(cap: float, x: Array) -> Array:
    return cap * jnp.tanh(x / cap)


@_cap.defjvp
def _cap_jvp(cap: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    # sech^2 without the cancellation of 1 - tanh^2.
    decay = jnp.exp(-2 * jnp.abs(x / cap))
    return _cap(cap, x), 4 * decay / (1 + decay) ** 2 * tangent
