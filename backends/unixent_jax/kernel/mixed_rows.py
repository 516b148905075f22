"""Rows whose target is mixed: a coefficient t_c for each class, of the shape of the logits, and both gradients.

With T = sum_c t_c and A = T + 2 z lse,

    loss = sum_c t_c L_c + z lse^2        g_c = A p_c - t_c        dg = A dp + (dT + 2 z <p, dx>) p - dt,
    dp = p * (dx - <p, dx>)               dloss/dt_c = L_c         dL = <p, dx> - dx.

The pivot is the argmax. All arrays are in the accumulation dtype; what is said once per row has size 1 along the class
axis. Where the devices of a mesh share the classes, every sum over c goes over all of them, in one message.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from unixent_jax.kernel.class_axis import (
    is_class,
    local_take,
    max_and_argmax,
    sum_over_classes,
    sum_shards,
    where_or_zero,
    zero_at,
)
from unixent_jax.kernel.rows import (
    RowSpec,
    add_z_loss,
    hvp,
    inner,
    inner_with_tangent,
    is_known,
    product,
    row_stats,
    shift_below,
    shifted_exp,
    softmax_and_logsumexp,
)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def loss_and_grads(
    spec: RowSpec, x: Array, coefs: Array, coef_grad: Array, active: Array
) -> tuple[Array, Array, Array]:
    """sum_c t_c L_c + z lse^2, its gradients for x and for t; exactly 0 in inactive rows.

    Where coef_grad is 0, t_c is fixed, and its gradient is 0 where L_c is infinite.
    """
    classes = spec.classes
    top, pivot = max_and_argmax(x, classes)
    shift = shift_below(top)
    e = zero_at(shifted_exp(x, shift), pivot, classes)
    is_pivot = is_class(x, pivot, classes)
    # 0 at the pivot by its index, not by subtraction: XLA may form x anew here, with another rounding than top's.
    gaps = where_or_zero(~is_pivot, top - x)

    def sum_local(value: Array) -> Array:
        return jnp.sum(value, classes.axis, keepdims=True)

    # Every term counts relative to the pivot, whose own L is the small part that all share.
    sum_rest, sum_gaps, other_coefs, pivot_coef, pivot_logit = sum_shards(
        classes,
        sum_local(e),
        sum_local(product(coefs, gaps)),
        sum_local(where_or_zero(~is_pivot, coefs)),
        local_take(coefs, pivot, classes),
        local_take(x, pivot, classes),
    )
    total_coef = pivot_coef + other_coefs
    # From gaps to top to gaps to the pivot.
    correction = pivot_logit - top
    sum_gaps = sum_gaps + other_coefs * correction
    stats = row_stats(shift, pivot_logit, sum_rest)

    loss = sum_gaps + total_coef * stats.loss
    z_loss_grad = 2 * spec.z_loss * stats.logsumexp if spec.z_loss else jnp.zeros((), x.dtype)
    pivot_grad = (other_coefs + z_loss_grad) * stats.p - pivot_coef * stats.one_minus_p
    grad = jnp.where(is_pivot, pivot_grad, e * (stats.exp_scale * (total_coef + z_loss_grad)) - coefs)
    nll = where_or_zero(~is_pivot, gaps + correction) + stats.loss
    nll = where_or_zero((coef_grad != 0) | (nll != jnp.inf), nll)
    loss = add_z_loss(loss, stats, spec)
    return jnp.where(active, loss, 0), where_or_zero(active, grad), where_or_zero(active, nll)


@partial(loss_and_grads.defjvp, symbolic_zeros=True)
def _loss_and_grads_jvp(spec: RowSpec, primals: Any, tangents: Any) -> Any:
    x, coefs, _, active = primals
    dx, dcoefs = tangents[:2]
    loss, grad, nll = loss_and_grads(spec, *primals)
    dloss, dgrad, dnll = jnp.zeros((), grad.dtype), jnp.zeros_like(grad), jnp.zeros_like(nll)
    if is_known(dx):
        p, _ = softmax_and_logsumexp(x, active, spec.classes)
        dloss = dloss + inner(grad, dx, spec.classes)
        dgrad = dgrad + hvp(spec, x, sum_over_classes(coefs, spec.classes), active, dx)
        dnll = dnll + inner(p, dx, spec.classes) - dx
    if is_known(dcoefs):
        p, _ = softmax_and_logsumexp(x, active, spec.classes)
        dloss = dloss + inner_with_tangent(nll, dcoefs, spec.classes)
        dgrad = dgrad + p * sum_over_classes(dcoefs, spec.classes) - dcoefs
    return (loss, grad, nll), (dloss, where_or_zero(active, dgrad), where_or_zero(active, dnll))
