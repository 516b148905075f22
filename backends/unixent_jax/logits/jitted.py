"""The jitted programs of a call, for every form of the loss.

``loss`` is a function of (spec, arrays) with the result in the accumulation dtype: that of logits, the fused linear
form, or either of them over a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from unixent_jax.kernel.rows import is_known


@partial(jax.jit, static_argnums=(0, 1, 2))
def value(loss: Callable[..., Any], spec: Any, result_dtype: str, arrays: Any) -> Any:
    """The finished result."""
    return _rounded(_result(loss, spec, arrays), result_dtype)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def value_and_grads(
    loss: Callable[..., Any],
    spec: Any,
    result_dtype: str,
    wrt: tuple[str, ...],
    arrays: Any,
    grad_output: Array | None,
) -> tuple[Any, tuple[Array, ...]]:
    """The finished result and the gradients, formed from the unrounded one."""

    def of(*differentiated: Array) -> Any:
        return _result(loss, spec, arrays._replace(**dict(zip(wrt, differentiated, strict=True))))

    result, vjp = jax.vjp(of, *(getattr(arrays, name) for name in wrt))
    if grad_output is None:
        return _rounded(result, result_dtype), vjp(jnp.ones_like(result))
    # Of the dtype of the result, and differing over the same axes of a mesh.
    return _rounded(result, result_dtype), vjp(grad_output.astype(result.dtype) + jnp.zeros_like(result))


def _result(loss: Callable[..., Any], spec: Any, arrays: Any) -> Any:
    """The result in the accumulation dtype, also of a normalizer that comes as `normalizer_of` splits it."""
    normalizer = arrays.normalizer
    if normalizer is None or not jnp.ndim(normalizer):
        return loss(spec, arrays)
    return _times(loss, spec, arrays._replace(normalizer=normalizer[0]), normalizer[1])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _times(loss: Callable[..., Any], spec: Any, arrays: Any, factor: Array) -> Array:
    """The loss times a factor, whose product with the upstream gradient may be infinite.

    So it meets the gradients last, where 0 is 0: the tangents are multiplied by it before the loss is. XLA, which would
    multiply it by the upstream gradient, is kept from that.
    """
    return lax.optimization_barrier(loss(spec, arrays)) * factor


@partial(_times.defjvp, symbolic_zeros=True)
def _times_jvp(loss: Callable[..., Any], spec: Any, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (arrays, factor), given = primals, tangents[0]._asdict()
    moving = {name: tangent for name, tangent in given.items() if is_known(tangent)}

    def of(differentiated: dict[str, Array]) -> Array:
        return loss(spec, arrays._replace(**differentiated))

    # In the accumulation dtype, so that the gradient is rounded after it is multiplied.
    primal = {name: getattr(arrays, name).astype(factor.dtype) for name in moving}
    scaled = {name: tangent.astype(factor.dtype) * factor for name, tangent in moving.items()}
    value, tangent = jax.jvp(of, (primal,), (lax.optimization_barrier(scaled),))
    return value * factor, tangent


def _rounded(result: Any, dtype: str) -> Any:
    """The finished result in its own dtype."""
    scalar_type = getattr(jnp, dtype)  # MindSpore, once imported, has NumPy's name "bfloat16" mean a type of its own
    return jax.tree.map(lambda array: array.astype(scalar_type), result)
