"""The pass over the logits by Triton, for CUDA tensors: two reads and a write.

`launch.row_statistics` reads the logits and gives the losses, and a few numbers a row; `launch.row_gradients` reads
them again and writes the gradients with the upstream factor folded in. `positions` has what comes before and after:
targets, masks and weights in one launch, the mean in two. Logits are float16, bfloat16 or float32 and
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
is_there = torch.version.hip is None and find_spec("triton") is not None


def serves(spec: KernelSpec, x: Tensor, target: Tensor) -> bool:
    """Whether the programs serve tensors of such devices and dtypes, at the spec's precision."""
    if not (is_there and x.device.type in DEVICES and x.dtype in _LOGITS):
        return False
    return spec.acc_dtype is torch.float32 and target.dtype in _TARGETS and x.shape[-1] < 2**30


def takes(spec: KernelSpec, x: Tensor, target: Tensor, *others: object) -> bool:
    """Whether the programs serve a call: plain tensors of one device, in float32, that nothing records."""
    return serves(spec, x, target) and _are_plain(x, target, *others)


def takes_positions(acc_dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    """Whether they serve what there is one of per position: those tensors that there are."""
    first = next(tensor for tensor in tensors if tensor is not None)
    on_device = is_there and first.device.type in DEVICES
    return on_device and acc_dtype is torch.float32 and _are_plain(*tensors)


def _are_plain(*tensors: object) -> bool:
    """Whether these, where they are tensors, lie in memory of one device as they are, and nothing records."""
    if is_traced() or compat.transforms_active():
        return False
    device = None
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            continue
        if type(tensor) not in (Tensor, Parameter) or tensor.layout is not torch.strided or tensor.is_neg():
            return False
        if device not in (None, tensor.device):
            return False
        device = tensor.device
    return True


def row_statistics(*operands: Any) -> tuple[Tensor, RowColumns]:
    """`launch.row_statistics`, of a call that `takes` says yes of."""
    from unixent_torch.kernel.triton import launch

    return launch.row_statistics(*operands)


def row_gradients(*operands: Any) -> tuple[Tensor, ...]:
    """`launch.row_gradients`, of the same call."""
    from unixent_torch.kernel.triton import launch

    return launch.row_gradients(*operands)


def statistics_of_index_tiles(*operands: Any) -> tuple[Tensor, ...]:
    """`launch.statistics_of_index_tiles`, of such tensors."""
    from unixent_torch.kernel.triton import launch

    return launch.statistics_of_index_tiles(*operands)


def statistics_of_mixed_tiles(*operands: Any) -> tuple[Tensor, ...]:
    """`launch.statistics_of_mixed_tiles`, likewise."""
    from unixent_torch.kernel.triton import launch

    return launch.statistics_of_mixed_tiles(*operands)


def positions_of(*operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`positions.positions_of`, of tensors that `takes_positions` says yes of."""
    from unixent_torch.kernel.triton import positions

    return positions.positions_of(*operands)


def mean(*operands: Any) -> Tensor:
    """`positions.mean`, of the same."""
    from unixent_torch.kernel.triton import positions

    return positions.mean(*operands)
