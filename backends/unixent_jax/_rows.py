"""The loss of each row and its derivatives, as JAX custom derivatives.

The rule of a loss forms the gradient g in the forward pass and returns <g, tangent>: transposed it is reverse mode, as
it stands forward mode, and both are one program under jit. The rule of the gradient is the product with the Hessian,
written in plain differentiable operations, so that every higher order follows from it.

With coefficients t_c per class, T = sum_c t_c and A = T + 2 z lse,

    loss = sum_c t_c L_c + z lse^2        g_c = A p_c - t_c        dg = A dp + (dT + 2 z <p, v>) p - dt,
    dp = p * (v - <p, v>)                 h_c = dloss/dt_c = L_c   dh = <p, v> - v.

All arrays are in the accumulation dtype; what is said once per row has size 1 along the class axis. Where the devices
of a mesh share the classes, every sum over c goes over all of them; the gradient takes no further one.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from unixent_jax import _stats


class RowOptions(NamedTuple):
    """What is static about a row."""

    classes: _stats.Classes
    z_loss: float


def _product(factor: Array, value: Array) -> Array:
    """factor * value with 0 * inf = 0: what has no weight adds nothing. NaN stays."""
    return _stats.select((factor != 0) | (value != jnp.inf), factor * value)


def _known(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)


def _inner(a: Array, b: Array, classes: _stats.Classes) -> Array:
    return _stats.total(a * b, classes)


def _softmax(x: Array, live: Array, classes: _stats.Classes) -> tuple[Array, Array]:
    """p and lse for derivatives of higher order; dead rows hold numbers, so that zeros pass through them."""
    x = jnp.where(live, x, 0)
    if not classes.shared:
        return jax.nn.softmax(x, classes.axis), jax.nn.logsumexp(x, classes.axis, keepdims=True)
    top = _stats.largest(x, classes)
    e = jnp.exp(x - top)
    sums = _stats.total(e, classes)
    return e / sums, top + jnp.log(sums)


def _with_z_loss(loss: Array, row: _stats.Pivot, options: RowOptions) -> Array:
    return loss + options.z_loss * row.lse**2 if options.z_loss else loss


# Class indices: t is coefficient at the target and 0 elsewhere.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def index_loss(options: RowOptions, x: Array, y: Array, coefficient: Array, live: Array) -> Array:
    """coefficient * L_y + z lse^2, exactly 0 where not live. y must lie in [0, C)."""
    row = _stats.scalars(x, y, options.classes)
    return jnp.where(live, _with_z_loss(_product(coefficient, row.loss), row, options), 0)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _index_loss_and_gradient(
    options: RowOptions, x: Array, y: Array, coefficient: Array, live: Array
) -> tuple[Array, Array]:
    e, row = _stats.exponentials(x, y, options.classes)
    loss = _with_z_loss(_product(coefficient, row.loss), row, options)
    total, own = coefficient, -coefficient * row.complement
    if options.z_loss:
        pull = 2 * options.z_loss * row.lse
        total, own = total + pull, own + pull * row.probability
    others = e * (row.scale * total)
    gradient = jnp.where(_stats.hits(x, y, options.classes), own, others)
    return jnp.where(live, loss, 0), _stats.select(live, gradient)


@partial(index_loss.defjvp, symbolic_zeros=True)
def _index_loss_jvp(options: RowOptions, primals: Any, tangents: Any) -> tuple[Array, Array]:
    loss, gradient = _index_loss_and_gradient(options, *primals)
    return loss, _inner(gradient, tangents[0], options.classes)


@partial(_index_loss_and_gradient.defjvp, symbolic_zeros=True)
def _index_gradient_jvp(options: RowOptions, primals: Any, tangents: Any) -> Any:
    x, _, coefficient, live = primals
    loss, gradient = _index_loss_and_gradient(options, *primals)
    curvature = _curvature(options, x, coefficient, live, tangents[0])
    return (loss, gradient), (_inner(gradient, tangents[0], options.classes), _stats.select(live, curvature))


def _curvature(options: RowOptions, x: Array, total: Array, live: Array, tangent: Array) -> Array:
    """The part of dg that stems from dx."""
    p, lse = _softmax(x, live, options.classes)
    mean = _inner(p, tangent, options.classes)
    moved = p * (tangent - mean)
    if not options.z_loss:
        return total * moved
    return (total + 2 * options.z_loss * lse) * moved + 2 * options.z_loss * mean * p


# Mixed targets: any t, of the shape of x.


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def mixed_loss(options: RowOptions, x: Array, t: Array, weight: Array, live: Array) -> Array:
    """sum_c t_c L_c + z lse^2, exactly 0 where not live. Where weight is 0, t_c is fixed and has no derivative."""
    return _mixed_loss_and_gradients(options, x, t, weight, live)[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mixed_loss_and_gradients(
    options: RowOptions, x: Array, t: Array, weight: Array, live: Array
) -> tuple[Array, Array, Array]:
    classes = options.classes
    top, peak = _stats.peak(x, classes)
    shift = _stats.below(top)
    e = _stats.erase(_stats.raised(x, shift), peak, classes)
    at_peak = _stats.hits(x, peak, classes)

    def over_classes(value: Array) -> Array:
        return jnp.sum(value, classes.axis, keepdims=True)

    # Every term counts relative to the peak, whose own L is the small part that all share.
    rest, spread, t_others, t_peak, x_peak = _stats.totals(
        classes,
        over_classes(e),
        over_classes(_product(t, top - x)),
        over_classes(_stats.select(~at_peak, t)),
        _stats.part(t, peak, classes),
        _stats.part(x, peak, classes),
    )
    total = t_peak + t_others
    if classes.shared:
        # 0, but for the derivative that a maximum over devices lacks: where JAX linearises this function by itself,
        # it goes past the rule below.
        own = x_peak - top
        spread, gap = spread + total * own, top - x + own
    else:
        x_peak, gap = top, top - x
    row = _stats.scalars_of(x_peak, shift, rest)

    loss = spread + total * row.loss
    pull = 2 * options.z_loss * row.lse if options.z_loss else jnp.zeros((), x.dtype)
    own = (t_others + pull) * row.probability - t_peak * row.complement
    gradient = jnp.where(at_peak, own, e * (row.scale * (total + pull)) - t)
    surprise = gap + row.loss
    surprise = _stats.select((weight != 0) | (surprise != jnp.inf), surprise)
    loss = _with_z_loss(loss, row, options)
    return jnp.where(live, loss, 0), _stats.select(live, gradient), _stats.select(live, surprise)


@partial(mixed_loss.defjvp, symbolic_zeros=True)
def _mixed_loss_jvp(options: RowOptions, primals: Any, tangents: Any) -> tuple[Array, Array]:
    loss, gradient, surprise = _mixed_loss_and_gradients(options, *primals)
    return loss, _along(options, gradient, surprise, tangents)


def _along(options: RowOptions, gradient: Array, surprise: Array, tangents: Any) -> Array:
    dx, dt = tangents[:2]
    moved = jnp.zeros((), gradient.dtype)
    if _known(dx):
        moved = moved + _inner(gradient, dx, options.classes)
    if _known(dt):
        moved = moved + _inner(surprise, dt, options.classes)
    return moved


@partial(_mixed_loss_and_gradients.defjvp, symbolic_zeros=True)
def _mixed_gradients_jvp(options: RowOptions, primals: Any, tangents: Any) -> Any:
    x, t, _, live = primals
    dx, dt = tangents[:2]
    loss, gradient, surprise = _mixed_loss_and_gradients(options, *primals)
    dgradient, dsurprise = jnp.zeros_like(gradient), jnp.zeros_like(surprise)
    if _known(dx):
        p, _ = _softmax(x, live, options.classes)
        dgradient = dgradient + _curvature(options, x, _stats.total(t, options.classes), live, dx)
        dsurprise = dsurprise + _inner(p, dx, options.classes) - dx
    if _known(dt):
        p, _ = _softmax(x, live, options.classes)
        dgradient = dgradient + p * _stats.total(dt, options.classes) - dt
    dgradient, dsurprise = _stats.select(live, dgradient), _stats.select(live, dsurprise)
    return (loss, gradient, surprise), (_along(options, gradient, surprise, tangents), dgradient, dsurprise)
