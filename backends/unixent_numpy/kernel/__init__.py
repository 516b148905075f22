"""The pass over N x C logits: its contract, and the one place that chooses what implements it.

    row_losses(x, target, weight, position_weight, grad_scale, spec, wrt=(), out=None) -> (losses, gradients)

Losses of shape P in the accumulation dtype and, in the same pass, the gradient for each of ``wrt``. Arrays are in
memory and ``spec`` is static:

    x                logits, P + (C,), any strides
    target           intp indices P in [0, C), or probabilities P + (C,)
    weight           class weights (C,) in the accumulation dtype, or None
    position_weight  v, P, in the accumulation dtype, or None for ones. A position of weight 0 is inactive: its loss and
                     gradient are 0 whatever its logits hold. One of weight NaN is NaN in value and gradient.
    grad_scale       what a position's derivative is multiplied by, v * upstream / denominator, in the accumulation
                     dtype and broadcastable to P; None where no gradient is asked for
    spec             a `KernelSpec`
    wrt              what to differentiate with respect to: "logits", "target"
    out              where to put the gradients, each of the dtype of its argument; ``x`` itself may take its own

A row's bits depend neither on how many others there are nor on their values.

Two implementations, chosen between here:

- `native`: the library of `unixent_native`, where it is there and reads arrays of these dtypes and strides;
- `composed`: NumPy's own operators over blocks of rows that stay in cache, on all cores.

`unixent_numpy.vocab_parallel` has the same contract for a process's share of the classes.
"""

from __future__ import annotations

from typing import Protocol

from unixent_native import load
from unixent_numpy.compat import Array
from unixent_numpy.kernel import composed, native
from unixent_numpy.kernel.spec import KernelSpec


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
        out: tuple[Array, ...] | None = None,
    ) -> tuple[Array, tuple[Array, ...]]: ...


def row_losses(
    x: Array,
    target: Array,
    weight: Array | None,
    position_weight: Array | None,
    grad_scale: Array | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
    out: tuple[Array, ...] | None = None,
) -> tuple[Array, tuple[Array, ...]]:
    """Implements the contract above."""
    operands = (x, target, weight, position_weight, grad_scale, spec, wrt, out)
    library = load()
    done = None if library is None else native.row_losses(library, *operands)
    return composed.row_losses(*operands) if done is None else done


__all__ = ["KernelSpec", "RowLosses", "row_losses"]
