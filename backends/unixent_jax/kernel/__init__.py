"""The pass over N x C logits: the seam. What it is asked, and the one place that chooses who answers.

    row_losses(x, target, weight, position_weight, grad_scale, spec, wrt=(), out=None) -> (losses P, gradients for wrt)

with arrays in memory and spec static. `composed` answers it in operators of JAX, on every device and for tracers. A
native kernel is another implementation of the same contract; it is chosen here.

Everything below logits-level and linear forms that touches an array of the size of the logits is in this package.
"""

from __future__ import annotations

from jax import Array

from unixent_jax.kernel import composed
from unixent_jax.kernel.class_axis import ClassAxis
from unixent_jax.kernel.spec import KernelSpec, is_index

__all__ = ["ClassAxis", "KernelSpec", "is_index", "row_losses"]


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
    """Losses of shape P in the accumulation dtype, and the gradient of ``sum(grad_scale * loss)`` for each of ``wrt``.

    Here ``loss`` is that of a position before its weight. In JAX a caller may differentiate the losses and gradients of
    this pass with respect to x and target (that is how second derivatives come about): an implementation that JAX
    cannot differentiate brings a rule, which may be that of `composed`.

    Args:
        x: logits in the accumulation dtype (XLA fuses the widening), P with the classes along ``spec.class_axis``.
        target: integer indices P in [0, C), or probabilities of the shape of x.
        weight: class weights (C,) in the accumulation dtype, or None. Of the whole vocabulary, also where x is a shard.
        position_weight: v, P in the accumulation dtype; None for ones. A position of weight 0 does not exist: its loss
            and its gradient row are exactly 0. One of weight NaN is NaN in value.
        grad_scale: in the accumulation dtype and of shape P; None for 1. NaN gives a row of NaN.
        spec: the static options.
        wrt: what to differentiate with respect to: "logits", "target".
        out: where to put the gradients, for implementations that write to memory; arrays of JAX are never written to.
    """
    return composed.row_losses(x, target, weight, position_weight, grad_scale, spec, wrt)
