"""JAX: eagerly, under jit and differentiated, by an eager `jax.vjp`, by `jax.jvp`, and under `jax.vmap`.

Forward mode gives a gradient one element at a time, in one program compiled per case. Second derivatives are taken
twice backward (grad) and forward over backward (forward).
"""

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
        Mode("eager", cases="lean"),
        Mode("jit", traced=True, autodiff=True, cases="core", transform="jit"),
        Mode("grad", autodiff=True, cases="core"),
        Mode("forward", autodiff=True, cases="few", transform="jvp"),
        Mode("vmap", traced=True, autodiff=True, cases="few", transform="vmap"),
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
            return _changed(function, mode)(*arrays)

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        above = [] if upstream is None else [upstream]

        def both(*values: Any) -> tuple[Any, tuple[Any, ...]]:
            given, above = values[: len(arrays)], values[len(arrays) :]
            loss, pull = jax.vjp(_of(function, given, wrt), *(given[i] for i in wrt))
            return loss, pull(_seed(loss, *above))

        with wide():
            if mode.name == "forward":
                return self._forward(function, arrays, wrt, upstream)
            found: tuple[Any, tuple[Any, ...]] = _changed(both, mode)(*arrays, *above)
            return found

    def _forward(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """d sum(upstream * value)/dx_i is that of value along the i-th unit vector, contracted with upstream."""
        of, moving = _of(function, arrays, wrt), [arrays[i] for i in wrt]
        push = jax.jit(lambda *steps: jax.jvp(of, tuple(moving), steps))
        value, _ = push(*map(np.zeros_like, moving))
        seed = np.asarray(_seed(value, *([] if upstream is None else [upstream])), np.float64)
        gradients = []
        for own in moving:
            gradient = np.zeros(own.size)
            for element in range(own.size):
                unit = np.zeros(own.size, own.dtype)
                unit[element] = 1
                steps = (
                    unit.reshape(own.shape) if other is own else np.zeros(other.shape, own.dtype) for other in moving
                )
                gradient[element] = (seed * np.asarray(push(*steps)[1])).sum()
            gradients.append(jnp.asarray(gradient.reshape(own.shape), own.dtype))
        return value, tuple(gradients)

    def curvature(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Any],
        wrt: Sequence[int],
        upstream: Any,
        along: Sequence[Any],
        mode: Mode,
    ) -> tuple[Any, ...]:
        of, moving = _of(function, arrays, wrt), tuple(arrays[i] for i in wrt)
        above = [] if upstream is None else [upstream]

        def slopes(*inner: Any) -> Any:
            loss, pull = jax.vjp(of, *inner)
            return pull(_seed(loss, *above))

        with wide():
            if mode.name == "forward":
                return tuple(jax.jvp(slopes, moving, tuple(along))[1])
            return tuple(jax.vjp(slopes, *moving)[1](tuple(along)))

    def lacks(self, error: Exception, mode: Mode) -> bool:
        own = isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError)
        return own or super().lacks(error, mode) or any(word in str(error) for word in LACKS)


def _changed(function: Callable[..., Any], mode: Mode) -> Callable[..., Any]:
    if mode.batched:
        return jax.vmap(function)
    return jax.jit(function) if mode.traced else function


def _of(function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int]) -> Callable[..., Any]:
    """The function of the arrays of `wrt` alone."""

    def of(*inner: Any) -> Any:
        put = dict(zip(wrt, inner, strict=True))
        return function(*(put.get(i, array) for i, array in enumerate(arrays)))

    return of


def _seed(loss: Any, upstream: Any = None) -> Any:
    return jnp.ones_like(loss) if upstream is None else jnp.asarray(upstream, loss.dtype)


# How JAX says that a function has no forward derivative, or an operation no rule for a transform.
LACKS = ("forward-mode differentiation", "forward-mode autodiff", "rule for", "not implemented")


harness = JaxHarness()
