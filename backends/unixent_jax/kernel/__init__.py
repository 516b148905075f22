"""The pass over N x C logits: its contract, and the one place that chooses what implements it.

    row_losses(x, target, weight, position_weight, grad_scale, spec, wrt=(), out=None) -> (losses, gradients)

Losses of shape P in the accumulation dtype and, in the same pass, the gradient for each of ``wrt``. Arrays are in
memory, or traced, and ``spec`` is static:

    x                logits in the accumulation dtype (XLA fuses the widening), P with the classes along
                     ``spec.class_axis``; inside `jax.shard_map` this device's share of the classes
    target           int32 indices P in [0, C), or probabilities of the shape of x
    weight           class weights (C,) in the accumulation dtype, or None; those of the whole vocabulary
    position_weight  v, P, in the accumulation dtype, or None for ones. A position of weight 0 is inactive: its loss and
                     gradient are 0 whatever its logits hold. One of weight NaN is NaN in value.
    grad_scale       what a position's derivative is multiplied by, v * upstream / denominator, in the accumulation
                     dtype, P; None for 1: the derivative of the loss before its weight
    spec             a `KernelSpec`
    wrt              what to differentiate with respect to: "logits", "target"
    out              where implementations that write to memory put the gradients; JAX never writes to an array

`unixent_jax.logits.autograd` asks for gradients with ``grad_scale=None``, since a rule of JAX learns the upstream
gradient only later, and may have losses and gradients differentiated once more. So an implementation that JAX cannot
differentiate brings a rule of its own, which may be the derivative of `composed`.

`native` calls the native library, where it takes the rows; `composed` consists of operators of JAX, and takes them all.
"""

from __future__ import annotations

from typing import Protocol

from jax import Array

from unixent_jax.kernel import composed, native
from unixent_jax.kernel.class_axis import ClassAxis
from unixent_jax.kernel.spec import KernelSpec, is_index


class RowLosses(Protocol):
    """The contract above, as a type."""

    def __call__(
        self,
        x: Array,
        target: Array,
        weight: Array | None,
        position_weight: Array | None,
        grad_scale: Array | None,
        spec: KernelSpec,
        wrt: tuple[str, ...] = (),
        out: None = None,
    ) -> tuple[Array, tuple[Array, ...]]: ...


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
    """The pass, by the implementation that suits the rows."""
    operands = (x, target, weight, position_weight, grad_scale)
    if native.takes(x, spec):
        result: tuple[Array, tuple[Array, ...]] = native.row_losses(spec, wrt, operands)
        return result
    return composed.row_losses(*operands, spec, wrt)


__all__ = ["ClassAxis", "KernelSpec", "RowLosses", "is_index", "row_losses"]
