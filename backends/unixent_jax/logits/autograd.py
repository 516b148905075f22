"""The derivative of the losses of positions, as JAX custom derivatives.

The rule forms the gradient g in the forward pass and returns <g, tangent>: transposed it is reverse mode, as it stands
forward mode, and both are one program under jit. The rule consists of operations that JAX differentiates, so that every
higher order follows from it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unixent.arguments import not_constant
from unixent_jax import kernel
from unixent_jax.kernel.rows import inner, inner_with_tangent, is_known


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def row_losses(
    spec: kernel.KernelSpec, x: Array, target: Array, weight: Array | None, position_weight: Array | None
) -> Array:
    """Each position's loss, P: `kernel.row_losses` with the derivatives for x and target."""
    return kernel.row_losses(x, target, weight, position_weight, None, spec)[0]


@partial(row_losses.defjvp, symbolic_zeros=True)
def _row_losses_jvp(spec: kernel.KernelSpec, primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, target, weight, position_weight = primals
    given = {name: tangent for name, tangent in zip(("logits", "target"), tangents, strict=False) if is_known(tangent)}
    losses, grads = kernel.row_losses(x, target, weight, position_weight, None, spec, tuple(given))
    tangent = jnp.zeros((), x.dtype)
    for grad, (name, moved) in zip(grads, given.items(), strict=True):
        # The gradient of a probability may be infinite; in that of the logits there is no inf that a 0 could meet.
        product = inner_with_tangent if name == "target" else inner
        tangent = tangent + product(grad, moved.astype(x.dtype), spec.class_axis)
    tangent = jnp.squeeze(tangent, spec.class_axis.axis)
    if position_weight is not None:
        # A selection, which keeps an infinite or NaN upstream gradient out of inactive rows.
        tangent = jnp.where(position_weight != 0, position_weight * tangent, 0)
    return losses, tangent


def constant(name: str, value: Array | float | None, dtype: Any) -> Array | None:
    """A weight, mask or normalizer in ``dtype``, which refuses to be differentiated."""
    return None if value is None else _refuse_derivative(name, jnp.asarray(value)).astype(dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _refuse_derivative(name: str, value: Array) -> Array:
    return value


@partial(_refuse_derivative.defjvp, symbolic_zeros=True)
def _refuse_derivative_jvp(name: str, primals: Any, tangents: Any) -> Any:
    if is_known(tangents[0]):
        raise not_constant(name)
    return primals[0], tangents[0]
