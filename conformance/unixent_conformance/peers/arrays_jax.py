"""JAX's arrays with 64 bits enabled, called eagerly, differentiated by `jax.vjp`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unixent_conformance.harness import Harness, Mode
from unixent_conformance.oracle import Array


class EagerJax(Harness):
    name = "jax"

    def version(self) -> str:
        return f"jax {jax.__version__}"

    def from_numpy(self, array: Array) -> jax.Array:
        jax.config.update("jax_enable_x64", True)
        return jnp.asarray(array)

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        def of_chosen(*chosen: Any) -> Any:
            given = dict(zip(wrt, chosen, strict=True))
            return self.call(function, [given.get(i, array) for i, array in enumerate(arrays)], mode)

        value, pullback = jax.vjp(of_chosen, *(arrays[i] for i in wrt))
        seed = jnp.ones_like(value) if upstream is None else upstream.astype(value.dtype)
        return value, pullback(seed)


harness = EagerJax()
