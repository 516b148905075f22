"""The eager kernel: losses of all positions and, in the same pass over each block, their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unixent_torch.kernel.blocks import blocks, empty_like, rows_per_block
from unixent_torch.kernel.rows import Coefficients, cap, mixed_block, plain_block, unshifted_block
from unixent_torch.kernel.spec import Spec


def solve(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    v: Tensor | None,
    factor: Tensor | float | None,
    spec: Spec,
    wrt: tuple[str, ...] = (),
    out: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses of shape P in the accumulation dtype, and the gradient of ``sum(factor * loss)`` for each of ``wrt``.

    Args:
        x: logits, P + (C,), any strides.
        target: int64 indices P in [0, C), or probabilities P + (C,).
        weight: class weights in the accumulation dtype, or None.
        v: position weights P in the accumulation dtype; None for ones. A position of weight 0 does not exist; one of
            weight NaN is NaN in value and gradient.
        factor: in the accumulation dtype and broadcastable to P, or a number; None for 1.
        spec: the static options.
        wrt: what to differentiate with respect to: "logits", "target".
        out: where to put the gradients, of the dtypes of their arguments; ``x`` itself may take its own.
    """
    shape = x.shape[:-1]
    count = shape.numel()
    index = None if target.is_floating_point() else target.reshape(-1, 1)
    v = None if v is None else v.reshape(-1, 1)
    factor = _per_row(factor, v, shape) if wrt else None
    dead = None if v is None else v == 0
    if dead is not None and spec.host and not dead.any():
        dead = None
    rows = min(rows_per_block(x), max(1, count))
    in_place = out is not None and any(grad is x for grad in out)
    work = _Work(x, weight, spec, rows, index is None, wrt, in_place)
    losses: list[Tensor] = []
    grads = tuple(empty_like(x if name == "logits" else target) for name in wrt) if out is None else out
    sources = (x,) if index is not None else (x, target)
    start = 0
    for pieces in blocks((*sources, *grads), rows):
        stop = start + pieces[0].shape[:-1].numel()
        here = slice(start, stop)
        loss = work.block(pieces, *(_cut(column, here, count) for column in (index, factor, dead)))
        if v is not None:
            loss = loss * _cut(v, here, count)
            if dead is not None:
                loss.masked_fill_(_cut(dead, here, count), 0)
        losses.append(loss)
        start = stop
    return _joined(losses, x, spec).view(shape), grads


def _cut(column: Any, rows: slice, count: int) -> Any:
    """The rows of a column; a number or None serves all of them."""
    if not isinstance(column, Tensor) or not column.ndim or rows.stop - rows.start == count:
        return column
    return column[rows]


def _joined(losses: list[Tensor], x: Tensor, spec: Spec) -> Tensor:
    if len(losses) == 1:
        return losses[0]
    return torch.cat(losses) if losses else x.new_empty(0, dtype=spec.acc_dtype)


def _per_row(factor: Tensor | float | None, v: Tensor | None, shape: torch.Size) -> Tensor | float:
    """``v * factor`` as a column, or as one number for all rows."""
    if factor is None:
        return 1.0 if v is None else v
    if isinstance(factor, Tensor) and factor.ndim:
        factor = factor.expand(shape).reshape(-1, 1)
    return factor if v is None else v * factor


class _Work:
    """One call's scratch memory, and the arithmetic of one of its blocks."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor | None,
        spec: Spec,
        rows: int,
        probabilities: bool,
        wrt: tuple[str, ...],
        in_place: bool,
    ) -> None:
        self._weight, self._spec, self._probabilities, self._wrt = weight, spec, probabilities, wrt
        self._shape, self._device = (rows, x.shape[-1]), x.device
        self._scratch: dict[str, Tensor] = {}
        mixed = probabilities or spec.smoothing > 0
        empty = torch.empty(x.shape[-1:], dtype=spec.acc_dtype, device=x.device) if mixed else None
        self._fixed = None if empty is None else Coefficients.of(weight, spec.smoothing, empty)
        # Rows that are done again have to be there again.
        self._unshifted = spec.host and not mixed and spec.softcap is None and not in_place

    def _buffer(self, name: str, rows: int, out: Tensor | None = None) -> Tensor:
        """A contiguous [rows, C] block: ``out`` itself where it is one, else scratch."""
        dtype = self._spec.acc_dtype
        if out is not None and out.dtype == dtype and out.is_contiguous():
            return out.view(rows, -1)
        if name not in self._scratch:
            self._scratch[name] = torch.empty(self._shape, dtype=dtype, device=self._device)
        return self._scratch[name][:rows]

    def block(
        self, pieces: tuple[Tensor, ...], index: Tensor | None, factor: Tensor | float | None, dead: Tensor | None
    ) -> Tensor:
        """Losses of the rows, a column; ``pieces`` are logits, the probabilities if any, and the gradients to fill."""
        source, spec = pieces[0], self._spec
        outputs = dict(zip(self._wrt, pieces[1 + self._probabilities :], strict=True))
        rows = source.shape[:-1].numel()
        block = self._buffer("logits", rows, outputs.get("logits"))
        factor = factor if outputs else None
        if self._unshifted:
            assert index is not None
            loss = self._unshifted_block(source, block, index, factor, dead)
        else:
            block.view(source.shape).copy_(source)
            slope = None
            if spec.softcap is not None:
                slope = self._buffer("slope", rows) if "logits" in outputs else None
                cap(block, spec.softcap, slope)
            if self._fixed is None:
                assert index is not None
                loss = plain_block(block, index, self._weight, spec.z_loss, factor)
            else:
                shares = target_grad = None
                if self._probabilities:
                    shares = self._buffer("shares", rows)
                    shares.view(source.shape).copy_(pieces[1])
                    if "target" in outputs:
                        target_grad = self._buffer("target", rows, outputs["target"])
                gaps = self._buffer("gaps", rows)
                loss = mixed_block(block, gaps, index, shares, self._fixed, spec.z_loss, factor, target_grad)
                if target_grad is not None:
                    _store(outputs["target"], target_grad, dead)
            if slope is not None:
                block.mul_(slope)
        if "logits" in outputs:
            _store(outputs["logits"], block, dead)
        return loss

    def _unshifted_block(
        self, source: Tensor, block: Tensor, index: Tensor, factor: Tensor | float | None, dead: Tensor | None
    ) -> Tensor:
        """`plain_block` without looking for maxima first; the rows that need them are done again."""
        z_loss = self._spec.z_loss
        if source.dtype == block.dtype and source.is_contiguous():
            source = source.view(block.shape)
            torch.exp(source, out=block)
        else:
            block.view(source.shape).copy_(source)
            block.exp_()
        loss, redo = unshifted_block(block, index, self._weight, z_loss, factor, dead)
        if redo is not None:
            again = source.reshape(block.shape)[redo].to(block.dtype)
            if isinstance(factor, Tensor) and factor.ndim:
                factor = factor[redo]
            loss[redo] = plain_block(again, index[redo], self._weight, z_loss, factor)
            if factor is not None:
                block[redo] = again
        return loss


def _store(out: Tensor, block: Tensor, dead: Tensor | None) -> None:
    """Round the block to the dtype of ``out`` and put it there, rows that don't exist as zeros."""
    if dead is not None:
        block.masked_fill_(dead, 0)
    if out.data_ptr() != block.data_ptr():
        out.copy_(block.view(out.shape))
