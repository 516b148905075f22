"""A plain loss in JAX that is right under every transform, and ways to be wrong under one of them.

The plain one is operations that JAX differentiates by itself, in float64, with the logits moved by their maximum. The
faults are those of hand-written rules (`custom_vjp`, `custom_jvp`, `custom_vmap`), which nothing holds to the value,
and of what a function does once, while it is traced.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import linear_call

from unixent_mutants.faults import fault

Array = Any


def plain(
    logits: Array,
    target: Array,
    *,
    mask: Array | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    dtype: str | None = None,
) -> Array:
    """Right: sum_c t_c (lse - x_c) + z lse^2 at every position that counts."""
    return reduced(
        logits,
        target,
        mask,
        reduction,
        lambda x, t: rows(x, t, z_loss, softcap),
        ignore_index=ignore_index,
        dtype=dtype,
    )


def reduced(
    x: Array,
    target: Array,
    mask: Any,
    reduction: str,
    row_losses: Any,
    ignore_index: int = -100,
    dtype: str | None = None,
) -> Array:
    """The reduction of what `row_losses` makes of logits and target target_coefs, NaN at an index out of range."""
    classes = x.shape[-1]
    v = jnp.ones(x.shape[:-1]) if mask is None else mask.astype("float64")
    if jnp.issubdtype(target.dtype, jnp.floating):
        t, out_of_range = target.astype("float64"), jnp.zeros(v.shape, bool)
    else:
        v = jnp.where(target == ignore_index, 0, v)
        out_of_range = (target != ignore_index) & ((target < 0) | (target >= classes))
        t = (jnp.arange(classes) == target[..., None]).astype("float64")
    wide = jnp.where((v != 0)[..., None], x.astype("float64"), 0)
    losses = jnp.where(out_of_range, jnp.nan, v * row_losses(wide, t))
    result = dtype or x.dtype
    if reduction == "none":
        return losses.astype(result)
    if reduction == "sum":
        return losses.sum().astype(result)
    total = v.sum()
    return jnp.where(total == 0, 0, losses.sum() / jnp.where(total == 0, 1, total)).astype(result)


def rows(x: Array, t: Array, z_loss: float = 0.0, softcap: float | None = None) -> Array:
    """The loss of every row."""
    if softcap is not None:
        x = softcap * jnp.tanh(x / softcap)
    peak = jax.lax.stop_gradient(x.max(-1, keepdims=True))
    lse = jnp.log(jnp.exp(x - peak).sum(-1, keepdims=True))
    far = lse - (x - peak)
    far = jnp.where((t == 0) & jnp.isinf(far), 0, far)
    return (t * far).sum(-1) + z_loss * (lse + peak)[..., 0] ** 2


def softmax_gradient(x: Array, t: Array) -> Array:
    """d rows/d x without penalty and cap."""
    return jax.nn.softmax(x, -1) * t.sum(-1, keepdims=True) - t


def with_backward(backward: Any) -> Any:
    """`rows` with a rule of its own: backward(x, t, upstream) is the gradient of x."""

    @jax.custom_vjp
    def row_losses(x: Array, t: Array) -> Array:
        return rows(x, t)

    row_losses.defvjp(
        lambda x, t: (rows(x, t), (x, t)), lambda saved, up: (backward(*saved, up), jnp.zeros_like(saved[1]))
    )
    return row_losses


@fault("forward", "class indices")
def forward_mode_gives_zero(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """The rule's linear map is 0 forward; what is transposed for a gradient is right."""

    @jax.custom_jvp
    def row_losses(x: Array, t: Array) -> Array:
        return rows(x, t)

    @row_losses.defjvp
    def tangent(primals: Any, tangents: Any) -> Any:
        grad = softmax_gradient(*primals)
        return rows(*primals), linear_call(
            lambda grad, moved: jnp.zeros(moved.shape[:-1]),
            lambda grad, up: up[..., None] * grad,
            grad,
            tangents[0],
        )

    return reduced(logits, target, None, reduction, row_losses)


@fault("forward", "softcap")
def forward_mode_forgets_the_cap(
    logits: Array, target: Array, *, softcap: float | None = None, z_loss: float = 0.0, reduction: str = "mean"
) -> Array:
    """The forward derivative of the cap is taken to be 1, the backward one is right."""

    @jax.custom_jvp
    def cap(x: Array) -> Array:
        return x if softcap is None else softcap * jnp.tanh(x / softcap)

    @cap.defjvp
    def tangent(primals: Any, tangents: Any) -> Any:
        grad = 1.0 if softcap is None else 1 / jnp.cosh(primals[0] / softcap) ** 2
        return cap(*primals), linear_call(
            lambda grad, moved: moved,
            lambda grad, up: up * grad,
            jnp.broadcast_to(grad, primals[0].shape),
            *tangents,
        )

    return reduced(logits, target, None, reduction, lambda x, t: rows(cap(x), t, z_loss))


@fault("grad", "second derivatives")
def gradient_saved_as_a_constant(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """The gradient is formed with the value, and a constant to whoever differentiates it: second derivatives are 0."""
    saved = with_backward(lambda x, t, up: up[..., None] * jax.lax.stop_gradient(softmax_gradient(x, t)))
    return reduced(logits, target, None, reduction, saved)


@fault("forward", "second derivatives")
def curvature_without_the_cap(
    logits: Array, target: Array, *, softcap: float | None = None, reduction: str = "mean"
) -> Array:
    """The cap's grad is is_max constant where the gradient is differentiated."""

    def capped(x: Array) -> Array:
        if softcap is None:
            return x
        fixed = jax.lax.stop_gradient(x)
        return softcap * jnp.tanh(fixed / softcap) + (x - fixed) / jnp.cosh(fixed / softcap) ** 2

    return reduced(logits, target, None, reduction, lambda x, t: rows(capped(x), t))


@fault("grad", "upstream gradient")
def upstream_ignored(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """A custom_vjp takes the cotangent of every position to be that of the first, as of a scalar."""
    careless = with_backward(lambda x, t, up: up.reshape(-1)[0] * softmax_gradient(x, t))
    return reduced(logits, target, None, reduction, careless)


@fault("grad", "result dtype")
def cotangent_keeps_its_dtype(
    logits: Array, target: Array, *, reduction: str = "mean", dtype: str | None = None
) -> Array:
    """A custom_vjp works in the dtype of the cotangent: with a result in half precision, so is the gradient."""

    @jax.custom_vjp
    def loss(x: Array, y: Array) -> Array:
        return plain(x, y, reduction=reduction, dtype=dtype)

    def backward(saved: Any, up: Array) -> Any:
        x, y = saved
        grad = jax.vjp(lambda x: plain(x, y, reduction=reduction), x)[1](jnp.ones(up.shape, x.dtype))[0]
        up = up.reshape(*up.shape, *[1] * (x.ndim - up.ndim))
        return (grad.astype(up.dtype) * up).astype(x.dtype), None

    loss.defvjp(lambda x, y: (loss(x, y), (x, y)), backward)
    return loss(logits, target)


@fault("grad", "z-loss")
def penalty_on_a_stopped_normaliser(
    logits: Array, target: Array, *, z_loss: float = 0.0, reduction: str = "mean"
) -> Array:
    """stop_gradient on the log-normaliser of the z-loss: a value without a gradient."""

    def row_losses(x: Array, t: Array) -> Array:
        return rows(x, t) + z_loss * jax.nn.logsumexp(jax.lax.stop_gradient(x), -1) ** 2

    return reduced(logits, target, None, reduction, row_losses)


@fault("grad", "class probabilities")
def target_stopped(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """stop_gradient on probability targets: a teacher that should learn too does not."""
    return plain(logits, jax.lax.stop_gradient(target), reduction=reduction)


@fault("vmap", "class indices")
def mapped_examples_share_one_mean(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """Under vmap the examples become positions of one call: each gets the mean over all."""

    @custom_vmap
    def value(x: Array, y: Array) -> Array:
        return plain(x, y, reduction=reduction)

    @value.def_vmap
    def mapped(size: int, batched: Any, x: Array, y: Array) -> Any:
        whole = plain(x, y, reduction=reduction)
        return (whole if reduction == "none" else jnp.broadcast_to(whole, (size,))), True

    @jax.custom_vjp
    def loss(x: Array, y: Array) -> Array:
        return value(x, y)

    def backward(saved: Any, up: Array) -> Any:
        x, y = saved
        return jax.vjp(lambda x: plain(x, y, reduction=reduction), x)[1](up)[0], None

    loss.defvjp(lambda x, y: (value(x, y), (x, y)), backward)
    return loss(logits, target)


@fault("vmap", "class indices")
def mapped_gradients_are_summed(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """Under vmap every example gets the sum of all examples' gradients, as a parameter that they share would."""

    @custom_vmap
    def gradient(x: Array, t: Array, up: Array) -> Array:
        return up[..., None] * softmax_gradient(x, t)

    @gradient.def_vmap
    def mapped(size: int, batched: Any, x: Array, t: Array, up: Array) -> Any:
        each = up[..., None] * softmax_gradient(x, t)
        return jnp.broadcast_to(each.sum(0), (size, *each.shape[1:])), True

    return reduced(logits, target, None, reduction, with_backward(gradient))


@fault("jit", "out-of-range targets")
def traced_indices_are_clamped(logits: Array, target: Array, *, reduction: str = "mean") -> Array:
    """Eager calls look at the indices; under a trace an index out of range becomes the nearest class."""
    if isinstance(target, jax.core.Tracer):
        target = jnp.where(target == -100, target, jnp.clip(target, 0, logits.shape[-1] - 1))
    return plain(logits, target, reduction=reduction)


@fault("jit", "ignore_index")
def traced_without_the_branch(
    logits: Array, target: Array, *, reduction: str = "mean", ignore_index: int = -100
) -> Array:
    """`if (target == ignore_index).any()` cannot be asked under a trace, so the mean is divided by all positions."""
    total = plain(logits, target, reduction=reduction, ignore_index=ignore_index)
    if isinstance(target, jax.core.Tracer) and reduction == "mean":
        return (total.astype("float64") * (target != ignore_index).sum() / target.size).astype(total.dtype)
    return total
