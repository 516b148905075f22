"""The pass over the logits by the native library, for plain tensors in host memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from unixent_native import DTYPES as CODES
from unixent_native import MAX_AXES, Share, Strided, available_cores
from unixent_native import row_losses as native_row_losses
from unixent_native.library import Library
from unixent_torch import compat
from unixent_torch.kernel.blocks import on_huge_pages
from unixent_torch.kernel.mode import is_traced
from unixent_torch.kernel.spec import KernelSpec

DTYPES = {getattr(torch, name): code for name, code in CODES.items()}


def row_losses(
    library: Library,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    position_weight: Tensor | None,
    grad_scale: Tensor | float | None,
    spec: KernelSpec,
    wrt: tuple[str, ...] = (),
    out: tuple[Tensor, ...] | None = None,
    share: Share | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """Implements the contract of `unixent_torch.kernel`; None for tensors that the library does not take.

    With ``share`` there are no losses; indices beyond the classes are another process's.
    """
    if not x.is_cpu or is_traced() or compat.transforms_active():
        return None
    if not have_memory(x, target, weight, position_weight, grad_scale, *(out or ())):
        return None
    positions, dtype = x.shape[:-1], spec.acc_dtype
    x, target = x.resolve_neg(), target.resolve_neg()
    if x.ndim > MAX_AXES + 1:
        x, target = x.contiguous(), target.contiguous()
    # Each is held by name until the call is over: what goes in is addresses.
    losses = torch.empty(positions, dtype=dtype, device=x.device)
    grads = out or ()
    if not grads:
        for name in wrt:
            grads += (on_huge_pages(torch.empty_like(x if name == "logits" else target)),)
    by_name = dict(zip(wrt, grads, strict=True))
    scale: Tensor | None = None
    if wrt:
        scale = torch.as_tensor(1.0 if grad_scale is None else grad_scale, dtype=dtype, device=x.device)
        if position_weight is not None:
            scale = position_weight * scale
        if scale.ndim:
            scale = scale.expand(positions).contiguous()
    is_index = not target.is_floating_point()
    index = target if is_index else None if share is None else share.pivot
    index = None if index is None else index.contiguous()
    held: list[Tensor | None] = []
    addresses: list[int] = []
    for each in (weight, position_weight, scale):
        # Without a function call: these are columns of small losses, too.
        column = each if each is None or each.dtype is dtype else each.to(dtype)
        column = None if column is None else column.contiguous().resolve_neg()
        held.append(column)
        addresses.append(0 if column is None else column.data_ptr())
    at_weight, at_position_weight, at_scale = addresses
    done = native_row_losses(
        library,
        x.shape,
        strided(x),
        0 if index is None else index.data_ptr(),
        None if is_index else strided(target),
        at_weight,
        at_position_weight,
        at_scale,
        0 if scale is None or scale.ndim == 0 else 1,
        losses.data_ptr(),
        strided(by_name["logits"]) if "logits" in by_name else None,
        strided(by_name["target"]) if "target" in by_name else None,
        DTYPES[dtype],
        spec.label_smoothing,
        spec.z_loss,
        spec.transform,
        num_threads(),
        0 if share is None else share.columns.data_ptr(),
        None if share is None else share.all_classes,
    )
    return (losses, grads) if done else None


def num_threads() -> int:
    """torch's own number of threads (1 in a worker of a data loader), no more than this process has cores."""
    threads = torch.get_num_threads()
    return min(threads, available_cores()) if threads > 1 else threads


def have_memory(*given: Any) -> bool:
    """Whether those of them that are tensors hold their numbers in host memory as they stand.

    Not so: subclasses, what a transform wraps (or has wrapped, long after it), and zeros without memory.
    """
    try:
        for tensor in given:
            if isinstance(tensor, Tensor) and (
                not (type(tensor) is Tensor or type(tensor) is Parameter)
                or not tensor.is_cpu
                or tensor.layout is not torch.strided
                or tensor.data_ptr() == 0
            ):
                return False
    except RuntimeError:  # no storage
        return False
    return True


def strided(tensor: Tensor) -> Strided:
    """The tensor as the library takes it."""
    in_bytes = tuple(map(tensor.element_size().__mul__, tensor.stride()))
    return Strided(tensor.data_ptr(), DTYPES[tensor.dtype], in_bytes)
