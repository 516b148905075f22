"""JAX: eagerly, some cases a second time under jit, differentiated, and under an eager `jax.vjp`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unixent_conformance.harness import Harness, Mode
from unixent_conformance.oracle import Array


@contextmanager
def wide() -> Iterator[None]:
    """64-bit dtypes for the length of a call: without them half the catalogue's inputs could not exist."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


class JaxHarness(Harness):
    name = "jax"
    modes: tuple[Mode, ...] = (
        # Eager calls are compiled too, op by op or whole.
        Mode("eager", cases="quick"),
        Mode("jit", traced=True, autodiff=True, cases="core"),
        Mode("grad", autodiff=True, cases="core"),
    )

    def version(self) -> str:
        devices = jax.devices()
        return f"jax {jax.__version__} on {len(devices)} {devices[0].platform}, numpy {np.__version__}"

    def from_numpy(self, array: Array) -> Any:
        with wide():
            return jnp.array(array)

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        with wide():
            return jax.jit(function)(*arrays) if mode.traced else function(*arrays)

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        def both(*values: Any) -> tuple[Any, tuple[Any, ...]]:
            def of(*inner: Any) -> Any:
                put = dict(zip(wrt, inner, strict=True))
                return function(*(put.get(i, value) for i, value in enumerate(values)))

            loss, pull = jax.vjp(of, *(values[i] for i in wrt))
            start = jnp.ones_like(loss) if upstream is None else jnp.asarray(upstream, loss.dtype)
            return loss, pull(start)

        with wide():
            return jax.jit(both)(*arrays) if mode.traced else both(*arrays)


harness = JaxHarness()
