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

from unixent_jax.kernel import by_platform, one_pass
from unixent_jax.kernel.blocks import stats_by_blocks
from unixent_jax.kernel.class_axis import is_class, where_or_zero
from unixent_jax.kernel.rows import RowSpec, RowStats, add_z_loss, exp_and_stats, hvp, inner, product


def loss(spec: RowSpec, x: Array, index: Array, coef: Array, active: Array) -> Array:
    """coef * L_y + z lse^2, exactly 0 in inactive rows. The index must be in [0, C)."""
    return by_platform.rows(_LOSS, spec, x, index, coef, active)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def loss_and_grad(
    spec: RowSpec, x: Array, again: Array, index: Array, coef: Array, active: Array
) -> tuple[Array, Array]:
    """The same and its gradient. The rule is the product with the Hessian, in operations that JAX differentiates.

    ``again`` is x, maybe as another expression, for forms that read it a second time.
    """
    loss, grad = by_platform.rows(_LOSS_AND_GRAD, spec, x, again, index, coef, active)
    return loss, grad


def _loss_by_blocks(spec: RowSpec, x: Array, index: Array, coef: Array, active: Array) -> tuple[Array]:
    return (_loss_of(spec, stats_by_blocks(x, index, spec.classes), coef, active),)


def _loss_in_one_pass(spec: RowSpec, x: Array, index: Array, coef: Array, active: Array) -> tuple[Array]:
    _, stats = one_pass.shift_and_stats(x, index, spec.classes)
    return (_loss_of(spec, stats, coef, active),)


def _both_by_masks(
    spec: RowSpec, x: Array, again: Array, index: Array, coef: Array, active: Array
) -> tuple[Array, Array]:
    e, stats = exp_and_stats(x, index, spec.classes)
    return _both(spec, e, stats, is_class(x, index, spec.classes), coef, active)


def _both_in_one_pass(
    spec: RowSpec, x: Array, again: Array, index: Array, coef: Array, active: Array
) -> tuple[Array, Array]:
    shift, stats = one_pass.shift_and_stats(x, index, spec.classes)
    e = one_pass.shifted_exp(again, shift)
    return _both(spec, e, stats, one_pass.is_class(x, index, spec.classes), coef, active)


_LOSS = by_platform.Forms(_loss_by_blocks, _loss_in_one_pass, num_grads=0)
_LOSS_AND_GRAD = by_platform.Forms(_both_by_masks, _both_in_one_pass, num_grads=1)


def _loss_of(spec: RowSpec, stats: RowStats, coef: Array, active: Array) -> Array:
    return jnp.where(active, add_z_loss(product(coef, stats.loss), stats, spec), 0)


def _both(
    spec: RowSpec, e: Array, stats: RowStats, is_target: Array, coef: Array, active: Array
) -> tuple[Array, Array]:
    """From the row's scalars and e, whose entry at the target is not looked at."""
    total_coef, target_grad = coef, -coef * stats.one_minus_p
    if spec.z_loss:
        z_loss_grad = 2 * spec.z_loss * stats.logsumexp
        total_coef, target_grad = total_coef + z_loss_grad, target_grad + z_loss_grad * stats.p
    other_grads = e * (stats.exp_scale * total_coef)
    grad = jnp.where(is_target, target_grad, other_grads)
    return _loss_of(spec, stats, coef, active), where_or_zero(active, grad)


@partial(loss_and_grad.defjvp, symbolic_zeros=True)
def _loss_and_grad_jvp(spec: RowSpec, primals: Any, tangents: Any) -> Any:
    x, _, _, coef, active = primals
    value, grad = loss_and_grad(spec, *primals)
    dgrad = where_or_zero(active, hvp(spec, x, coef, active, tangents[0]))
    return (value, grad), (inner(grad, tangents[0], spec.classes), dgrad)
