"""Memory: blocks of rows that stay in cache, whatever the strides, and pages for the gradient."""

from __future__ import annotations

import ctypes
import sys

from torch import Tensor

# A block is passed over about four times: on a CPU it has to stay in cache, and be long enough that the calls between
# two passes don't count. On an accelerator it only bounds the scratch memory.
_HOST_ELEMENTS = 1 << 20
_DEVICE_ELEMENTS = 1 << 25

# glibc maps anything larger afresh on each allocation, and faulting such memory in by pages of 4 KiB takes longer than
# the exponentials that are to fill it.
_FRESH_BYTES = 1 << 25
_PAGE = 1 << 12
_MADV_HUGEPAGE = 14
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def rows_per_block(x: Tensor, num_classes: int | None = None) -> int:
    """How many rows of ``x`` (classes last) one block holds; of ``num_classes`` where other processes hold more."""
    elements = _HOST_ELEMENTS if x.is_cpu else _DEVICE_ELEMENTS
    return max(1, elements // (num_classes or int(x.shape[-1])))


def on_huge_pages(out: Tensor) -> Tensor:
    """``out`` itself, asking for huge pages where its memory is large, fresh and the host's."""
    size = out.numel() * out.element_size()
    if size > _FRESH_BYTES and _libc is not None and out.is_cpu:
        start = -(-out.data_ptr() // _PAGE) * _PAGE
        length = (out.data_ptr() + size - start) // _PAGE * _PAGE
        # Advice only: where the kernel has none to give, nothing changes.
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_HUGEPAGE)
    return out


def blocks(tensors: tuple[Tensor, ...], rows: int) -> list[tuple[Tensor, ...]]:
    """Cut tensors of one shape P + (C,) into equal pieces of at most ``rows`` positions, in C order, without a copy."""
    for tensor in tensors:
        if not tensor.is_contiguous():
            break
    else:
        # No generator: torch's tracer (2.14) can't start over while it is inside one.
        flat: tuple[Tensor, ...] = ()
        for tensor in tensors:
            flat += (tensor.view(-1, tensor.shape[-1]),)
        tensors = flat
    first = tensors[0]
    positions = first.shape[:-1].numel()
    if positions <= rows:
        return [tensors] if positions else []
    per_item = positions // first.shape[0]
    if per_item > rows:
        return [piece for item in zip(*tensors, strict=True) for piece in blocks(item, rows)]
    step = rows // per_item
    return [tuple(tensor[start : start + step] for tensor in tensors) for start in range(0, first.shape[0], step)]


def row_sum(block: Tensor) -> Tensor:
    """Sum of each row, as a column; a row's bits don't depend on how many others there are."""
    if block.shape[0] == 1:
        # torch splits a lone row over its threads, and sums it in another order.
        return block.expand(2, -1).sum(1, keepdim=True)[:1]
    return block.sum(1, keepdim=True)
