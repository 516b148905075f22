"""The pass over the logits by Triton, for CUDA tensors: two reads and a write.

`launch.row_statistics` reads the logits and gives the losses, and a few numbers a row; `launch.row_gradients` reads
them again and writes the gradients with the upstream factor folded in. Logits are float16, bfloat16 or float32 and
accumulated in float32. Triton comes with torch's CUDA wheels and is imported by the first CUDA tensor.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

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


def takes(spec: KernelSpec, x: Tensor, target: Tensor, *others: object) -> bool:
    """Whether the programs serve a call: plain tensors of one device, in float32, that nothing records."""
    if not (_is_there and x.device.type in DEVICES and x.dtype in _LOGITS):
        return False
    if spec.acc_dtype is not torch.float32 or target.dtype not in _TARGETS:
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


def row_statistics(*operands: Any) -> tuple[Tensor, RowColumns]:
    """`launch.row_statistics`, of a call that `takes` says yes of."""
    from unixent_torch.kernel.triton import launch

    return launch.row_statistics(*operands)


def row_gradients(*operands: Any) -> tuple[Tensor, ...]:
    """`launch.row_gradients`, of the same call."""
    from unixent_torch.kernel.triton import launch

    return launch.row_gradients(*operands)
