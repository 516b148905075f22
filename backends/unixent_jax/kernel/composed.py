"""The pass over the logits in operators of JAX: transform, coefficients and chain rule around the two kinds of row.

It can be differentiated to every order, since its rows have rules of their own (`index_rows`, `mixed_rows`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from unixent.logit_transform import LogitTransform
from unixent_jax.collectives import local_slice
from unixent_jax.kernel import index_rows, mixed_rows
from unixent_jax.kernel.class_axis import along_classes, class_indices, is_class, target_weight, where_or_zero
from unixent_jax.kernel.rows import RowSpec, opaque
from unixent_jax.kernel.spec import KernelSpec, is_index
from unixent_jax.kernel.transform import apply_transform, transform_grad


def row_losses(
    x: Array,
    target: Array,
    weight: Array | None,
    position_weight: Array | None,
    grad_scale: Array | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
    out: None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """See `unixent_jax.kernel`."""
    axis = spec.class_axis.axis
    rows = RowSpec(spec.class_axis, spec.z_loss)
    v = jnp.ones((), x.dtype) if position_weight is None else jnp.expand_dims(position_weight, axis)
    active = v != 0
    transform = spec.transform
    x = mask_padding(spec, x, -jnp.inf)
    if transform.softcap is not None:
        # Inactive rows are cleared first: the derivative of the cap at NaN would turn their zero gradient into NaN.
        x = where_or_zero(active, x)
    logits = apply_transform(transform, x)
    # XLA on a GPU would keep the capped logits from its first reading to its second, were they one expression.
    again = logits if transform.softcap is None or not wrt else apply_transform(transform, opaque(x))

    grads: dict[str, Array] = {}
    if is_index(target) and spec.label_smoothing == 0:
        index = jnp.expand_dims(target, axis)
        coef = jnp.ones((), x.dtype)
        if weight is not None:
            coef = jnp.expand_dims(target_weight(weight, target, x, spec.class_axis), axis)
        if wrt:
            loss, grads["logits"] = index_rows.loss_and_grad(rows, logits, again, index, coef, active)
        else:
            loss = index_rows.loss(rows, logits, index, coef, active)
    else:
        coefs, coef_grad = _target_coefs(spec, x, target, weight)
        loss, grads["logits"], nll = mixed_rows.loss_and_grads(rows, logits, again, coefs, coef_grad, active)
        if "target" in wrt:
            grads["target"] = mask_padding(spec, nll * coef_grad, 0)
    if transform != LogitTransform() and "logits" in wrt:
        grads["logits"] = grads["logits"] * transform_grad(transform, x)
    if grad_scale is not None:
        scale = jnp.expand_dims(grad_scale, axis)
        grads = {name: where_or_zero(active, scale * grads[name]) for name in wrt}
    # The outer selection keeps an infinite or NaN upstream gradient out of inactive rows.
    losses = jnp.where(active, loss if position_weight is None else v * loss, 0)
    return jnp.squeeze(losses, axis), tuple(grads[name] for name in wrt)


def _target_coefs(spec: KernelSpec, x: Array, target: Array, weight: Array | None) -> tuple[Array, Array]:
    """t_c = w_c ((1 - s) q_c + s/C), and dt_c/dq_c = w_c (1 - s): 0 where t_c is fixed."""
    classes, smoothing = spec.class_axis, spec.label_smoothing
    w = jnp.ones((), x.dtype)
    if weight is not None:
        w = along_classes(local_slice(weight, classes.shard_axes, x.shape[classes.axis]), x, classes)
    if is_index(target):
        index = jnp.expand_dims(target, classes.axis)
        w_y = w if weight is None else jnp.expand_dims(target_weight(weight, target, x, classes), classes.axis)
        smoothing_coefs = smoothing / spec.num_classes * w
        # Once a row: formed class by class, XLA would write the coefficients out.
        at_target = (1 - smoothing) * w_y + smoothing / spec.num_classes * w_y
        coefs = jnp.where(is_class(x, index, classes), at_target, smoothing_coefs)
        return mask_padding(spec, coefs, 0), jnp.ones((), x.dtype)
    coefs = w * ((1 - smoothing) * target.astype(x.dtype) + smoothing / spec.num_classes)
    return mask_padding(spec, coefs, 0), w * (1 - smoothing)


def mask_padding(spec: KernelSpec, x: Array, value: float) -> Array:
    """x at the classes that exist, ``value`` at the padding beyond them."""
    classes = spec.class_axis
    if classes.num_padded_classes(x) == spec.num_classes:
        return x
    return jnp.where(class_indices(x, x, classes) < spec.num_classes, x, value)
