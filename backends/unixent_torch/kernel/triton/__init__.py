"""The pass over the logits by Triton, for CUDA tensors: two reads and a write.

`launch.row_statistics` reads the logits and gives the losses, and a few numbers a row; `launch.row_gradients` reads
them again and writes the gradients with the upstream factor folded in. Logits are float16, bfloat16 or float32 and
accumulated in float32. Triton comes with torch's CUDA wheels and is imported by the first CUDA tensor.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import Parameter

from unixent_torch import compat
from unixent_torch.kernel.mode import is_traced
from unixent_torch.kernel.spec import KernelSpec
from unixent_torch.kernel.triton.columns import RowColumns

# Types of devices whose tensors the programs take. Tests add "cpu", under Triton's interpreter.
DEVICES = ["cuda"]

_LOGITS = (torch.float16, torch.bfloat16, torch.float32)
_TARGETS = (torch.int64, *_LOGITS, torch.float64)
_is_there = torch.version.hip is None and find_spec("triton") is not None


def takes_device(x: Tensor) -> bool:
    """Whether the programs serve such logits, wherever their memory is known."""
    return _is_there and x.device.type in DEVICES and x.dtype in _LOGITS


def takes(spec: KernelSpec, x: Tensor, target: Tensor, *others: object) -> bool:
    """Whether the programs serve a call: plain tensors of one device, in float32, that nothing records."""
    if not (takes_device(x) and spec.acc_dtype is torch.float32 and target.dtype in _TARGETS):
        return False
    if is_traced() or compat.transforms_active() or x.shape[-1] >= 2**30:
        return False
    for tensor in (x, target, *others):
        if isinstance(tensor, Tensor) and not (
            type(tensor) in (Tensor, Parameter)
            and tensor.device == x.device
            and tensor.layout is torch.strided
            and not tensor.is_neg()
        ):
            return False
    return True


def row_statistics(
    x: Tensor, target: Tensor, weight: Tensor | None, position_weight: Tensor | None, spec: KernelSpec
) -> tuple[Tensor, RowColumns]:
    """Losses P, and what `row_gradients` takes: one read of the logits. For calls that `takes` says yes of."""
    from unixent_torch.kernel.triton import launch

    return launch.row_statistics(x, target, weight, position_weight, spec)


def row_gradients(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | float | None,
    spec: KernelSpec,
    rows: RowColumns,
    wrt: tuple[str, ...],
    out: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """The gradients of ``sum(grad_scale * losses)`` for each of ``wrt``: one more read of the logits, and the write."""
    from unixent_torch.kernel.triton import launch

    return launch.row_gradients(x, target, weight, position_weight, grad_scale, spec, rows, wrt, out)
