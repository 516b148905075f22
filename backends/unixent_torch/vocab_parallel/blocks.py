"""The logits of this process's classes, a block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent_torch.collectives import Parts
from unixent_torch.kernel.blocks import blocks, rows_per_block
from unixent_torch.kernel.rows import Coefficients, cap
from unixent_torch.kernel.spec import Spec


class LocalRows:
    """One call's logits, P + (C here,), and what of the target is of their shape; no class at all is legal.

    Attributes:
        count: the number of positions N.
        here: the number of classes here.
        spec, parts: the static options, and how the classes are split.
        index: the class indices [N, 1], or None where the targets are probabilities.
        probabilities: those of the classes here, or None.
        weight: the class weights of all classes, or None.
        fixed: the target's coefficients that no position changes, over all classes; None where only a target's own
            class has one.
        base, slope: w_c s / C and w_c (1 - s) of the classes here, with ``fixed``.
    """

    base: Tensor
    slope: Tensor

    def __init__(self, x: Tensor, target: Tensor, weight: Tensor | None, spec: Spec, parts: Parts) -> None:
        self._x = x
        self.spec, self.parts, self.weight = spec, parts, weight
        self.here, self.count = x.shape[-1], x.shape[:-1].numel()
        self.probabilities = target if target.is_floating_point() else None
        self.index = None if target.is_floating_point() else target.reshape(-1, 1)
        self._step = max(1, self.count)
        if self.here and not torch.compiler.is_compiling():
            self._step = min(rows_per_block(x), self._step)
        self.fixed: Coefficients | None = None
        if self.probabilities is not None or spec.smoothing > 0:
            like = torch.empty(parts.classes, dtype=spec.acc_dtype, device=x.device)
            self.fixed = Coefficients.of(weight, spec.smoothing, like)
            local = slice(parts.first_class, parts.first_class + self.here)
            self.base = self.fixed.base[local]
            share = torch.full_like(self.base, self.fixed.share)
            self.slope = share if weight is None else share * weight[local]
        self._scratch: dict[str, Tensor] = {}

    def columns(self, *size: int) -> Tensor:
        """Zeros [..., N, 1] in the accumulation dtype."""
        return torch.zeros((*size, self.count, 1), dtype=self.spec.acc_dtype, device=self._x.device)

    def buffer(self, name: str, rows: int) -> Tensor:
        """A [rows, C here] block of scratch memory."""
        if name not in self._scratch:
            shape = (self._step, self.here)
            self._scratch[name] = torch.empty(shape, dtype=self.spec.acc_dtype, device=self._x.device)
        return self._scratch[name][:rows]

    def pieces(self, *more: Tensor | None) -> list[tuple[slice, tuple[Tensor, ...]]]:
        """Pieces of the logits, the probabilities if any, and more tensors of their shape; none without a class."""
        tensors = tuple(tensor for tensor in (self._x, self.probabilities, *more) if tensor is not None)
        pieces, start = [], 0
        for found in blocks(tensors, self._step) if self.here else ():
            stop = start + found[0].shape[:-1].numel()
            pieces.append((slice(start, stop), found))
            start = stop
        return pieces

    def read(self, piece: Tensor, out: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
        """Capped logits in a block that may be overwritten: that of ``out``, or scratch; ``slope`` as in `cap`."""
        rows = piece.shape[:-1].numel()
        block = self.buffer("logits", rows) if out is None else out.view(rows, self.here)
        block.view(piece.shape).copy_(piece)
        if self.spec.softcap is not None:
            cap(block, self.spec.softcap, slope)
        return block

    def shifted(self, piece: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
        """Capped logits less ``shift``, in one pass where nothing has to be widened or capped."""
        rows = piece.shape[:-1].numel()
        if self.spec.softcap is not None or piece.dtype != self.spec.acc_dtype or not piece.is_contiguous():
            return self.read(piece, out).sub_(shift)
        block = self.buffer("logits", rows) if out is None else out.view(rows, self.here)
        return torch.sub(piece.view(rows, self.here), shift, out=block)

    def shares(self, piece: Tensor) -> Tensor:
        """The coefficients t_c of a block of probabilities, in scratch."""
        shares = self.buffer("shares", piece.shape[:-1].numel())
        shares.view(piece.shape).copy_(piece)
        return shares.mul_(self.slope).add_(self.base)

    def gaps(self, block: Tensor, level: Tensor) -> Tensor:
        """``level`` - ``block``, in scratch."""
        return torch.sub(level, block, out=self.buffer("gaps", len(block)))


def put(block: Tensor, at: Tensor, mine: Tensor, value: Tensor | float) -> None:
    """Write ``value`` at the columns ``at`` of the rows that are ``mine``."""
    block.scatter_(1, at, torch.where(mine, value, block.gather(1, at)))


def exponentials(block: Tensor, at: Tensor, mine: Tensor) -> Tensor:
    """The block itself, as its exponential, and 0 at the pivots that are here."""
    block.exp_()
    put(block, at, mine, 0.0)
    return block
