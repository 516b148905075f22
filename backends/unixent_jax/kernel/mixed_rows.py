"""Rows whose target is mixed: a coefficient t_c for each class, of the shape of the logits, and both gradients.

With T = sum_c t_c and A = T + 2 z lse,

    loss = sum_c t_c L_c + z lse^2        g_c = A p_c - t_c        dg = A dp + (dT + 2 z <p, dx>) p - dt,
    dp = p * (dx - <p, dx>)               dloss/dt_c = L_c         dL = <p, dx> - dx.

The pivot is the argmax. All arrays are in the accumulation dtype; what is said once per row has size 1 along the class
axis. Where the devices of a mesh share the classes, every sum over c goes over all of them, in one message.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from unixent_jax.kernel import by_platform, one_pass
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
    RowStats,
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
    spec: RowSpec, x: Array, again: Array, coefs: Array, coef_grad: Array, active: Array
) -> tuple[Array, Array, Array]:
    """sum_c t_c L_c + z lse^2, its gradients for x and for t; exactly 0 in inactive rows.

    Where coef_grad is 0, t_c is fixed, and its gradient is 0 where L_c is infinite. ``again`` is x, maybe as another
    expression, for forms that read it a second time.
    """
    loss, grad, nll = by_platform.rows(_FORMS, spec, x, again, coefs, coef_grad, active)
    return loss, grad, nll


def _by_masks(
    spec: RowSpec, x: Array, again: Array, coefs: Array, coef_grad: Array, active: Array
) -> tuple[Array, Array, Array]:
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
    # From gaps to top to gaps to the pivot.
    correction = pivot_logit - top
    sums = _Sums(pivot_coef, other_coefs, sum_gaps + other_coefs * correction)
    stats = row_stats(shift, pivot_logit, sum_rest)
    loss, grad = _loss_and_grad(spec, stats, sums, e, is_pivot, coefs)
    nll = where_or_zero(~is_pivot, gaps + correction) + stats.loss
    nll = where_or_zero((coef_grad != 0) | (nll != jnp.inf), nll)
    return jnp.where(active, loss, 0), where_or_zero(active, grad), where_or_zero(active, nll)


def _in_one_pass(
    spec: RowSpec, x: Array, again: Array, coefs: Array, coef_grad: Array, active: Array
) -> tuple[Array, Array, Array]:
    if not one_pass.suits_mixed_rows(x, spec.classes.axis):
        return _by_masks(spec, x, again, coefs, coef_grad, active)
    row = one_pass.mixed_row(x, coefs, spec.classes.axis)
    e, stats = one_pass.exactly_shifted_exp(again, row.shift), row_stats(row.shift, row.top, row.sum_rest)
    sums = _Sums(row.pivot_coef, row.other_coefs, row.sum_gaps)
    is_pivot = one_pass.is_class(x, row.pivot, spec.classes)
    loss, grad = _loss_and_grad(spec, stats, sums, e, is_pivot, coefs)
    nll = jnp.where(is_pivot, 0, row.top - again) + stats.loss
    nll = jnp.where((coef_grad != 0) | (nll != jnp.inf), nll, 0)
    return jnp.where(active, loss, 0), jnp.where(active, grad, 0), jnp.where(active, nll, 0)


class _Sums(NamedTuple):
    """The scalars of a row's coefficients: the pivot's, the sum of the others, and that of the others times gaps."""

    pivot_coef: Array
    other_coefs: Array
    gaps: Array


def _loss_and_grad(
    spec: RowSpec, stats: RowStats, sums: _Sums, e: Array, is_pivot: Array, coefs: Array
) -> tuple[Array, Array]:
    """From the row's scalars and e, whose entry at the pivot is not looked at."""
    pivot_coef, other_coefs, sum_gaps = sums
    total_coef = pivot_coef + other_coefs
    z_loss_grad = 2 * spec.z_loss * stats.logsumexp if spec.z_loss else jnp.zeros((), e.dtype)
    pivot_grad = (other_coefs + z_loss_grad) * stats.p - pivot_coef * stats.one_minus_p
    grad = jnp.where(is_pivot, pivot_grad, e * (stats.exp_scale * (total_coef + z_loss_grad)) - coefs)
    return add_z_loss(sum_gaps + total_coef * stats.loss, stats, spec), grad


_FORMS = by_platform.Forms(_by_masks, _in_one_pass, num_grads=2)


@partial(loss_and_grads.defjvp, symbolic_zeros=True)
def _loss_and_grads_jvp(spec: RowSpec, primals: Any, tangents: Any) -> Any:
    x, _, coefs, _, active = primals
    dx, _, dcoefs = tangents[:3]
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
