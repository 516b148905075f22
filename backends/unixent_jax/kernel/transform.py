"""What becomes of logits first, x' = b a tanh(x / a), and its derivative."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from unixent.logit_transform import LogitTransform


def apply_transform(transform: LogitTransform, x: Array) -> Array:
    """An infinite logit stays what it is: probability 0, or a row of NaN. Its derivative under a cap is 0."""
    softcap, inverse_temperature = transform
    x = x if softcap is None else _apply_softcap(softcap, x)
    return x if inverse_temperature == 1 else inverse_temperature * x


def transform_grad(transform: LogitTransform, x: Array) -> Array | float:
    """b sech^2(x / a)."""
    softcap, inverse_temperature = transform
    return inverse_temperature if softcap is None else inverse_temperature * _softcap_grad(softcap, x)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply_softcap(softcap: float, x: Array) -> Array:
    return jnp.where(jnp.isinf(x), x, softcap * jnp.tanh(x / softcap))


@_apply_softcap.defjvp
def _apply_softcap_jvp(softcap: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _apply_softcap(softcap, *primals), _softcap_grad(softcap, *primals) * tangents[0]


def _softcap_grad(softcap: float, x: Array) -> Array:
    """sech^2(x / a), without the cancellation of 1 - tanh^2."""
    decay = jnp.exp(-2 * jnp.abs(x / softcap))
    return 4 * decay / (1 + decay) ** 2
