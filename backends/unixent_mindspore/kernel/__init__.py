"""The pass over N x C logits, and the one place that chooses what does it.

.. code-block:: text

    row_losses(x, target, weight, position_weight, grad_scale, spec, wrt=(), out=None)
        -> (losses P, gradients for wrt)

with arrays in memory and ``spec`` static. ``target`` is a class index that is safe to gather with, or probabilities of
the shape of ``x``. A position of ``position_weight`` 0 does not exist: its loss and its gradients are exactly 0,
whatever its logits hold. One of ``position_weight`` NaN is NaN in all of them. ``grad_scale`` is what the derivative of
a position's unweighted loss is multiplied by: position weight times upstream gradient over the denominator.

A MindSpore cell has no optional arguments: ``spec`` and ``wrt`` are given to the cell's constructor, ``spec`` says what
there is, and `ABSENT` stands for an array that there is not. Per-position arrays keep the class axis, of size 1.

- In host memory (`on_host`) the NumPy backend does the pass, and all that surrounds it, on the tensors' own memory:
  `unixent_mindspore.logits.host`.
- `unixent_mindspore.kernel.composed` composes it of MindSpore's primitives: for accelerators, and for second
  derivatives everywhere.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms

from unixent_mindspore.kernel.composed import RowLosses
from unixent_mindspore.kernel.curvature import RowCurvature
from unixent_mindspore.kernel.spec import ABSENT, DTYPES, KernelSpec


def on_host() -> bool:
    """Whether tensors lie in host memory, where the NumPy backend can work on them."""
    return bool(ms.get_context("device_target") == "CPU")


def composed_dtype(acc_dtype: str, host: bool) -> str:
    """The dtype in which the primitives compute: MindSpore's CPU kernels are accurate in float64 only."""
    return "float64" if host else acc_dtype


def row_losses(spec: KernelSpec, wrt: tuple[str, ...] = ()) -> Any:
    """The cell that does the pass."""
    return RowLosses(spec, wrt)


__all__ = ["ABSENT", "DTYPES", "KernelSpec", "RowCurvature", "composed_dtype", "on_host", "row_losses"]
