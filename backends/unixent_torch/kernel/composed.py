"""The pass over the logits by torch's own operators, a block of rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unixent_torch.kernel.blocks import blocks, on_huge_pages, rows_per_block
from unixent_torch.kernel.rows import ClassCoefs, apply_transform, index_rows, mixed_rows, through_transform
from unixent_torch.kernel.spec import KernelSpec


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
    """`unixent_torch.kernel.row_losses` on any device."""
    # Of a half precision tensor with the negative bit, torch's copy into another dtype drops the sign.
    if x.is_neg() or target.is_neg():
        x, target = x.resolve_neg(), target.resolve_neg()
    shape = x.shape[:-1]
    count = shape.numel()
    index = None if target.is_floating_point() else target.reshape(-1, 1)
    grads: tuple[Tensor, ...] = ()
    inactive = None
    if position_weight is not None:
        position_weight = position_weight.reshape(-1, 1)
        inactive = position_weight == 0
        if spec.readable and not inactive.any():
            inactive = None
    if not wrt:
        grad_scale = None
    elif isinstance(grad_scale, Tensor) and grad_scale.ndim:
        grad_scale = grad_scale.expand(shape).reshape(-1, 1)
    elif grad_scale is None:
        grad_scale = 1.0
    if grad_scale is not None and position_weight is not None:
        grad_scale = position_weight * grad_scale
    if out is None:
        for name in wrt:
            grads += (on_huge_pages(torch.empty_like(x if name == "logits" else target)),)
    else:
        grads = out
    rows = min(rows_per_block(x), max(1, count))
    work = _BlockWork(x, weight, spec, rows, index is None, wrt)
    sources = (x,) if index is not None else (x, target)
    losses: list[Tensor] = []
    start = 0
    for pieces in blocks((*sources, *grads), rows):
        stop = start + pieces[0].shape[:-1].numel()
        columns = (index, grad_scale, inactive, position_weight)
        if stop - start < count:
            columns = _rows_of(columns, slice(start, stop))
        losses.append(work.block(pieces, *columns))
        start = stop
    if not losses:
        return x.new_empty(shape, dtype=spec.acc_dtype), grads
    return (losses[0] if len(losses) == 1 else torch.cat(losses)).view(shape), grads


def _rows_of(columns: tuple[Any, ...], rows: slice) -> Any:
    """The rows of each column; a number or None serves all of them."""
    return tuple([each[rows] if isinstance(each, Tensor) and each.ndim else each for each in columns])


class _BlockWork:
    """One call's scratch memory, and the arithmetic of one of its blocks."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor | None,
        spec: KernelSpec,
        rows: int,
        probabilities: bool,
        wrt: tuple[str, ...],
    ) -> None:
        self._weight, self._spec, self._probabilities, self._wrt = weight, spec, probabilities, wrt
        self._shape, self._device = (rows, x.shape[-1]), x.device
        self._scratch: dict[str, Tensor] = {}
        self._coefs: ClassCoefs | None = None
        if probabilities or spec.label_smoothing > 0:
            like = torch.empty(x.shape[-1:], dtype=spec.acc_dtype, device=x.device)
            self._coefs = ClassCoefs.of(weight, spec.label_smoothing, like)

    def _buffer(self, name: str, rows: int, out: Tensor | None = None) -> Tensor:
        """A contiguous [rows, C] block: ``out`` itself where it is one, else scratch."""
        dtype = self._spec.acc_dtype
        if out is not None and out.dtype == dtype and out.is_contiguous():
            return out.view(rows, -1)
        if name not in self._scratch:
            self._scratch[name] = torch.empty(self._shape, dtype=dtype, device=self._device)
        return self._scratch[name][:rows]

    def block(
        self,
        pieces: tuple[Tensor, ...],
        index: Tensor | None,
        grad_scale: Tensor | float | None,
        inactive: Tensor | None,
        position_weight: Tensor | None,
    ) -> Tensor:
        """Losses of the rows, a column; ``pieces`` are logits, the probabilities if any, and the gradients to fill."""
        source, spec, rows = pieces[0], self._spec, pieces[0].shape[:-1].numel()
        outputs = dict(zip(self._wrt, pieces[1 + self._probabilities :], strict=True))
        out = outputs.get("logits")
        block = self._buffer("logits", rows, out)
        block.view(source.shape).copy_(source)
        softcap_grad = None
        if spec.transform.softcap is not None and out is not None:
            softcap_grad = self._buffer("softcap_grad", rows)
        apply_transform(block, spec.transform, softcap_grad)
        if self._coefs is None:
            assert index is not None
            loss = index_rows(block, index, self._weight, spec.z_loss, grad_scale)
        else:
            probabilities = target_grad = None
            if self._probabilities:
                probabilities = self._buffer("probabilities", rows)
                probabilities.view(source.shape).copy_(pieces[1])
                if "target" in outputs:
                    target_grad = self._buffer("target", rows, outputs["target"])
            gaps = self._buffer("logit_gaps", rows)
            loss = mixed_rows(block, gaps, index, probabilities, self._coefs, spec.z_loss, grad_scale, target_grad)
            if target_grad is not None:
                _store(outputs["target"], target_grad, inactive)
        if out is not None:
            _store(out, through_transform(block, spec.transform, softcap_grad), inactive)
        if position_weight is not None:
            loss = loss * position_weight
        return loss if inactive is None else loss.masked_fill_(inactive, 0)


def _store(out: Tensor, block: Tensor, inactive: Tensor | None) -> None:
    """Round the block to the dtype of ``out`` and put it there, inactive rows as zeros."""
    if inactive is not None:
        block.masked_fill_(inactive, 0)
    if out.data_ptr() != block.data_ptr():
        out.copy_(block.view(out.shape))
