"""Statistics of rows by the native library, for plain tensors in host memory."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.row_statistics import INDICES
from unixent_native import KEPT, MAX_AXES
from unixent_native import row_statistics as native_row_statistics
from unixent_native.library import Library
from unixent_torch import compat
from unixent_torch.kernel.blocks import on_huge_pages
from unixent_torch.kernel.mode import is_traced
from unixent_torch.kernel.native import DTYPES, have_memory, num_threads, strided
from unixent_torch.positions.rows import Columns, RowResults, StatsSpec


def row_statistics(
    library: Library,
    x: Tensor,
    columns: Columns,
    spec: StatsSpec,
    upstream: dict[str, Tensor] | None,
    out: Tensor | None,
    keep: bool,
    kept: Tensor | None,
) -> RowResults | None:
    """Implements the contract of `unixent_torch.positions.kernel`; None for tensors that the library does not take."""
    if not x.is_cpu or not x.shape[-1] or is_traced() or compat.transforms_active():
        return None
    if not have_memory(x, *columns, *(upstream or {}).values(), out, kept):
        return None
    positions, dtype = x.shape[:-1], spec.kernel.acc_dtype
    x = x.resolve_neg()
    if x.ndim > MAX_AXES + 1:
        x = x.contiguous()
    if upstream is None:
        out = None
    elif out is None:
        out = on_huge_pages(torch.empty_like(x))
    outputs = {name: _empty(name, x, columns, spec) for name in spec.outputs}
    if keep:
        kept = torch.empty(KEPT, positions.numel(), dtype=torch.float64, device=x.device)
    # Held by name until the call is over: what goes in is addresses.
    flat = [None if each is None else _in_memory(each, dtype) for each in columns]
    grads = {name: _in_memory(each, dtype) for name, each in (upstream or {}).items()}
    target, selected, selected_weight, position_weight, smoothing = [
        0 if each is None else each.data_ptr() for each in flat
    ]
    done = native_row_statistics(
        library,
        x.shape,
        strided(x),
        index=target,
        position_weight=position_weight,
        selected=selected,
        selected_weight=selected_weight,
        num_selected=0 if columns.selected is None else columns.selected.shape[-1],
        smoothing=smoothing,
        z_loss=spec.kernel.z_loss,
        k=spec.k,
        outputs={name: each.data_ptr() for name, each in outputs.items()},
        upstream={name: each.data_ptr() for name, each in grads.items()},
        kept=0 if kept is None else kept.data_ptr(),
        x_grad=None if out is None else strided(out),
        acc_dtype=DTYPES[dtype],
        transform=spec.kernel.transform,
        threads=num_threads(),
    )
    return RowResults(outputs, out, kept) if done else None


def _empty(name: str, x: Tensor, columns: Columns, spec: StatsSpec) -> Tensor:
    """Where an output goes."""
    width: tuple[int, ...] = (spec.k,) if name.startswith("top_") else ()
    if name == "selected_log_prob" and columns.selected is not None:
        width = (columns.selected.shape[-1],)
    dtype = torch.int64 if name in INDICES else torch.bool if name == "correct" else spec.kernel.acc_dtype
    return torch.empty((*x.shape[:-1], *width), dtype=dtype, device=x.device)


def _in_memory(column: Tensor, dtype: torch.dtype) -> Tensor:
    """A column as its bytes are read: in C order, and in that dtype unless it is of integers."""
    return (column.to(dtype) if column.is_floating_point() else column).contiguous().resolve_neg()
