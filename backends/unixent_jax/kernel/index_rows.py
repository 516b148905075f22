"""Rows whose target is a class: the loss of one term, and its gradient.

With the pivot y, a coefficient t and T = t + 2 z lse,

    loss = t L_y + z lse^2        g_c = T p_c        g_y = 2 z lse p_y - t (1 - p_y)        dg = T dp + 2 z <p, dx> p

All arrays are in the accumulation dtype; what is said once per row has size 1 along the class axis. Where the devices
of a mesh share the classes, every sum over c goes over all of them; the gradient takes no further one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unixent_jax.kernel.blocks import stats_by_blocks
from unixent_jax.kernel.class_axis import is_class, where_or_zero
from unixent_jax.kernel.rows import RowSpec, add_z_loss, exp_and_stats, hvp, inner, product


def loss(spec: RowSpec, x: Array, index: Array, coef: Array, active: Array) -> Array:
    """coef * L_y + z lse^2, exactly 0 in inactive rows. The index must be in [0, C)."""
    stats = stats_by_blocks(x, index, spec.classes)
    return jnp.where(active, add_z_loss(product(coef, stats.loss), stats, spec), 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def loss_and_grad(spec: RowSpec, x: Array, index: Array, coef: Array, active: Array) -> tuple[Array, Array]:
    """The same and its gradient. The rule is the product with the Hessian, in operations that JAX differentiates."""
    e, stats = exp_and_stats(x, index, spec.classes)
    value = add_z_loss(product(coef, stats.loss), stats, spec)
    total_coef, target_grad = coef, -coef * stats.one_minus_p
    if spec.z_loss:
        z_loss_grad = 2 * spec.z_loss * stats.logsumexp
        total_coef, target_grad = total_coef + z_loss_grad, target_grad + z_loss_grad * stats.p
    other_grads = e * (stats.exp_scale * total_coef)
    grad = jnp.where(is_class(x, index, spec.classes), target_grad, other_grads)
    return jnp.where(active, value, 0), where_or_zero(active, grad)


@partial(loss_and_grad.defjvp, symbolic_zeros=True)
def _loss_and_grad_jvp(spec: RowSpec, primals: Any, tangents: Any) -> Any:
    x, _, coef, active = primals
    value, grad = loss_and_grad(spec, *primals)
    dgrad = where_or_zero(active, hvp(spec, x, coef, active, tangents[0]))
    return (value, grad), (inner(grad, tangents[0], spec.classes), dgrad)
