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

from unixent_conformance.harness import Harness, Mode, with_respect_to
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

    def owns(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        with x64():
            return _transformed(function, mode)(*arrays)

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], grad_output: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        def both(*inputs: Any) -> tuple[Any, tuple[Any, ...]]:
            given, above = inputs[: len(arrays)], inputs[len(arrays) :]
            loss, pullback = jax.vjp(with_respect_to(function, given, wrt), *(given[i] for i in wrt))
            return loss, pullback(_seed(loss, *above))

        with x64():
            if mode.name == "forward":
                return self._forward(function, arrays, wrt, grad_output)
            return _transformed(both, mode)(*arrays, *([] if grad_output is None else [grad_output]))  # type: ignore[no-any-return]

    def _forward(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], grad_output: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """One program for all elements: every array has a direction, of which one is no 0."""
        moving = tuple(arrays[i] for i in wrt)
        pushforward = jax.jit(lambda *steps: jax.jvp(with_respect_to(function, arrays, wrt), moving, steps))
        still = [jnp.zeros_like(array) for array in moving]

        def jvp(i: int, direction: Any) -> Any:
            return pushforward(*(direction if j == i else zero for j, zero in zip(wrt, still, strict=True)))[1]

        return self.forward_gradient(pushforward(*still)[0], arrays, wrt, grad_output, jvp)

    def hvp(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Any],
        wrt: Sequence[int],
        grad_output: Any,
        directions: Sequence[Any],
        mode: Mode,
    ) -> tuple[Any, ...]:
        of, moving = with_respect_to(function, arrays, wrt), tuple(arrays[i] for i in wrt)

        def grads(*inner: Any) -> Any:
            loss, pullback = jax.vjp(of, *inner)
            return pullback(_seed(loss, *([] if grad_output is None else [grad_output])))

        with x64():
            if mode.name == "forward":
                return tuple(jax.jvp(grads, moving, tuple(directions))[1])
            return tuple(jax.vjp(grads, *moving)[1](tuple(directions)))

    def has_no_rule(self, error: Exception, mode: Mode) -> bool:
        own = isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError)
        return own or super().has_no_rule(error, mode) or any(word in str(error) for word in NO_RULE)


def _transformed(function: Callable[..., Any], mode: Mode) -> Callable[..., Any]:
    if mode.batched:
        return jax.vmap(function)
    return jax.jit(function) if mode.traced else function


def _seed(loss: Any, grad_output: Any = None) -> Any:
    return jnp.ones_like(loss) if grad_output is None else jnp.asarray(grad_output, loss.dtype)


# How JAX says that a function has no forward derivative, or an operation no rule for a transform.
NO_RULE = ("forward-mode differentiation", "forward-mode autodiff", "rule for", "not implemented")


harness = JaxHarness()
