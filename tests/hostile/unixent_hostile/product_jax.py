"""The cross product on JAX, with 64-bit dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from unixent_hostile.product import Inapplicable, Product, direction
from unixent_hostile.views import Array


class JaxProduct(Product):
    name = "jax"
    transforms = ("eager", "grad", "jvp", "vmap", "jit", "jit grad", "export")
    sampled = {"jit grad": 4, "export": 3, "vmap": 4}  # noqa: RUF012

    def own(self, value: Any) -> Any:
        return jnp.dtype(value) if isinstance(value, str) else jnp.asarray(value)

    def special(self, way: str, value: Array) -> Any:
        if way == "parameter" and value.dtype.kind == "f":
            return jnp.asarray(value)
        if way == "sparse" and value.ndim:
            from jax.experimental import sparse

            return sparse.BCOO.fromdense(jnp.asarray(value))
        raise Inapplicable

    def complaints(self, transform: str, argument: str) -> Iterator[str]:
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        try:
            yield from super().complaints(transform, argument)
        finally:
            jax.config.update("jax_enable_x64", before)

    def apply(self, transform: str, function: Callable[..., Any], arrays: list[Any], moving: int | None) -> Any:
        if transform in ("grad", "jit grad", "jvp"):
            if moving is None:
                raise Inapplicable
            if transform == "jvp":

                def of_moving(array: Any) -> Any:
                    return function(*arrays[:moving], array, *arrays[moving + 1 :])

                return tuple(jax.jvp(of_moving, (arrays[moving],), (jnp.asarray(direction(arrays[moving].shape)),)))
            both = jax.value_and_grad(function, argnums=moving)
            return tuple((jax.jit(both) if transform == "jit grad" else both)(*arrays))
        if transform == "vmap":
            return jax.vmap(function)(*(jnp.stack([array, array, array]) for array in arrays))[1]
        if transform == "jit":
            return jax.jit(function)(*arrays)
        if transform == "export":
            return jax.export.export(jax.jit(function))(*arrays).call(*arrays)
        return function(*arrays)


product = JaxProduct()
