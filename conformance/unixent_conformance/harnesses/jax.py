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

from unixent_conformance.harness import Derivative, Harness, Mode
from unixent_conformance.model import Array, Tier


@contextmanager
def x64() -> Iterator[None]:
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
        Mode("eager", tier=Tier.SAMPLED),
        Mode("jit", traced=True, autodiff=True, tier=Tier.CORE, transform="jit"),
        Mode("grad", autodiff=True, tier=Tier.CORE),
        Mode("forward", autodiff=True, tier=Tier.FEW, transform="jvp"),
        Mode("vmap", traced=True, autodiff=True, tier=Tier.FEW, transform="vmap"),
    )

    def version(self) -> str:
        devices = jax.devices()
        return f"jax {jax.__version__} on {len(devices)} {devices[0].platform}, numpy {np.__version__}"

    def from_numpy(self, array: Array) -> Any:
        with x64():
            return jnp.array(array)

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def read_all(self, arrays: Sequence[Any]) -> Array:
        with x64():
            return self.to_numpy(jnp.stack(tuple(arrays)))

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        with x64():
            return _transformed(function, mode)(*arrays)

    def gradient(self, of: Derivative, mode: Mode) -> tuple[Any, tuple[Any, ...]]:
        def both(*inputs: Any) -> tuple[Any, tuple[Any, ...]]:
            here = of.at(inputs)
            loss, pullback = jax.vjp(here.of_moving, *here.moving)
            return loss, pullback(_seed(loss, here.grad_output))

        with x64():
            if mode.name == "forward":
                return self._forward(of)
            return _transformed(both, mode)(*of.inputs)  # type: ignore[no-any-return]

    def gradients(self, of: Derivative, upstream: Sequence[Any], mode: Mode) -> list[tuple[Any, ...]]:
        with x64():
            loss, pullback = jax.vjp(of.of_moving, *of.moving)
            return [pullback(_seed(loss, each)) for each in upstream]

    def _forward(self, of: Derivative) -> tuple[Any, tuple[Any, ...]]:
        """One program for all elements: every array has a direction, of which one is no 0."""
        pushforward = jax.jit(lambda *steps: jax.jvp(of.of_moving, of.moving, steps))
        still = [jnp.zeros_like(array) for array in of.moving]

        def jvp(i: int, direction: Any) -> Any:
            return pushforward(*(direction if j == i else zero for j, zero in zip(of.wrt, still, strict=True)))[1]

        return self.forward_gradient(of, pushforward(*still)[0], jvp)

    def hvp(self, of: Derivative, directions: Sequence[Any], mode: Mode) -> tuple[Any, ...]:
        def grads(*moving: Any) -> Any:
            loss, pullback = jax.vjp(of.of_moving, *moving)
            return pullback(_seed(loss, of.grad_output))

        with x64():
            if mode.name == "forward":
                return tuple(jax.jvp(grads, of.moving, tuple(directions))[1])
            return tuple(jax.vjp(grads, *of.moving)[1](tuple(directions)))

    def has_no_rule(self, error: Exception, mode: Mode) -> bool:
        own = isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError)
        return own or super().has_no_rule(error, mode) or any(word in str(error) for word in NO_RULE)


def _transformed(function: Callable[..., Any], mode: Mode) -> Callable[..., Any]:
    if mode.batched:
        return jax.vmap(function)
    return jax.jit(function) if mode.traced else function


def _seed(loss: Any, grad_output: Any) -> Any:
    return jnp.ones_like(loss) if grad_output is None else jnp.asarray(grad_output, loss.dtype)


# How JAX says that a function has no forward derivative, or an operation no rule for a transform.
NO_RULE = ("forward-mode differentiation", "forward-mode autodiff", "rule for", "not implemented")


harness = JaxHarness()
