"""The pass over N x C logits: its contract, and the one place that chooses what implements it.

    row_losses(x, target, weight, position_weight, grad_scale, spec, wrt=(), out=None) -> (losses, gradients)

Losses of shape P in the accumulation dtype and, in the same pass, the gradient of ``sum(grad_scale * losses)`` for each
of ``wrt``. Arrays are in memory and ``spec`` is static:

    x                logits, P + (C,), any strides
    target           int64 indices P in [0, C), or probabilities P + (C,)
    weight           class weights (C,) in the accumulation dtype, or None
    position_weight  v, P, in the accumulation dtype, or None for ones. A position of weight 0 is inactive: its loss and
                     gradient are 0 whatever its logits hold. One of weight NaN is NaN in value and gradient.
    grad_scale       in the accumulation dtype and broadcastable to P, or a number, or None for 1
    spec             a `KernelSpec`
    wrt              what to differentiate with respect to: "logits", "target"
    out              where to put the gradients, each of the dtype of its argument; ``x`` itself may take its own

A row's bits depend neither on how many others there are nor on their values.

Four implementations; `row_losses` chooses between the first three:

- `triton`: for CUDA tensors. `row_statistics` gives the losses and a few numbers a row, which `row_gradients` makes the
  gradients of with one more read of the logits.
- `native`: the library of `unixent_native`, where it is there, for plain tensors in host memory.
- `composed`: framework operators over blocks of rows that stay in cache; serves every device.
- `traced.row_losses`: the losses alone, as one composition of functional operations. A compiler fuses it, and autograd
  differentiates it to any order; it is what `Mode.TRACED` and `Mode.COMPOSED` take.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from unixent_native import load
from unixent_torch.kernel import composed, native, triton
from unixent_torch.kernel.spec import KernelSpec


class RowLosses(Protocol):
    """The contract above, as a type."""

    def __call__(
        self,
        x: Tensor,
        target: Tensor,
        weight: Tensor | None,
        position_weight: Tensor | None,
        grad_scale: Tensor | float | None,
        spec: KernelSpec,
        wrt: tuple[str, ...] = (),
        out: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]: ...


def row_losses(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | float | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
    out: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Implements the contract above."""
    operands = (x, target, weight, position_weight, grad_scale, spec, wrt, out)
    if x.device.type in triton.DEVICES and triton.takes(
        spec, x, target, weight, position_weight, grad_scale, *(out or ())
    ):
        losses, rows = triton.row_statistics(x, target, weight, position_weight, spec)
        if not wrt:
            return losses, ()
        return losses, triton.row_gradients(x, target, weight, position_weight, grad_scale, spec, rows, wrt, out)
    library = load()
    done = None if library is None else native.row_losses(library, *operands)
    return composed.row_losses(*operands) if done is None else done


__all__ = ["KernelSpec", "RowLosses", "row_losses"]
