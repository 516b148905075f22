"""The logits of this process's classes, a block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent_torch.collectives import LocalShard
from unixent_torch.kernel import KernelSpec
from unixent_torch.kernel.blocks import blocks, rows_per_block
from unixent_torch.kernel.rows import ClassCoefs, apply_transform


class LocalLogits:
    """One call's logits, P + (local classes,), and what of the target is of their shape; no class at all is legal.

    Attributes:
        num_rows: the number of positions N.
        num_local_classes: the number of classes of this process.
        spec, shard: the static options, and how the classes are split.
        x: the logits.
        index: the class indices [N, 1], or None where the targets are probabilities.
        local_index, owns_target: with ``index``, the target's column here (0 where another process holds it), and
            whether this one does.
        probabilities: those of the local classes, or None.
        weight: the class weights of all classes, or None.
        coefs: the target's coefficients that no position changes, over all classes; None where only a target's own
            class has one.
        smoothing, probability_grad: w_c s / C and w_c (1 - s) of the local classes, with ``coefs``.
    """

    local_index: Tensor
    owns_target: Tensor
    smoothing: Tensor
    probability_grad: Tensor

    def __init__(self, x: Tensor, target: Tensor, weight: Tensor | None, spec: KernelSpec, shard: LocalShard) -> None:
        x, target = x.resolve_neg(), target.resolve_neg()  # see `unixent_torch.kernel.composed`
        self.x = x
        self.spec, self.shard, self.weight = spec, shard, weight
        self.num_local_classes, self.num_rows = x.shape[-1], x.shape[:-1].numel()
        self.probabilities = target if target.is_floating_point() else None
        self.index = None if target.is_floating_point() else target.reshape(-1, 1)
        if self.index is not None:
            column = self.index - shard.vocab_start
            self.owns_target = (column >= 0) & (column < self.num_local_classes)
            self.local_index = torch.where(self.owns_target, column, 0)
        self._step = max(1, self.num_rows)
        if self.num_local_classes and not torch.compiler.is_compiling():
            self._step = min(rows_per_block(x), self._step)
        self.coefs: ClassCoefs | None = None
        if self.probabilities is not None or spec.label_smoothing > 0:
            like = torch.empty(shard.num_classes, dtype=spec.acc_dtype, device=x.device)
            self.coefs = ClassCoefs.of(weight, spec.label_smoothing, like)
            local = slice(shard.vocab_start, shard.vocab_start + self.num_local_classes)
            self.smoothing = self.coefs.smoothing[local]
            self.probability_grad = self.coefs.probability_grad()[local]
        self._scratch: dict[str, Tensor] = {}

    def columns(self, *size: int) -> Tensor:
        """Zeros [..., N, 1] in the accumulation dtype."""
        return torch.zeros((*size, self.num_rows, 1), dtype=self.spec.acc_dtype, device=self.x.device)

    def buffer(self, name: str, rows: int) -> Tensor:
        """A [rows, local classes] block of scratch memory."""
        if name not in self._scratch:
            shape = (self._step, self.num_local_classes)
            self._scratch[name] = torch.empty(shape, dtype=self.spec.acc_dtype, device=self.x.device)
        return self._scratch[name][:rows]

    def pieces(self, *more: Tensor | None) -> list[tuple[slice, tuple[Tensor, ...]]]:
        """Pieces of the logits, the probabilities if any, and more tensors of their shape; none without a class."""
        tensors = tuple(tensor for tensor in (self.x, self.probabilities, *more) if tensor is not None)
        pieces, start = [], 0
        for piece in blocks(tensors, self._step) if self.num_local_classes else ():
            stop = start + piece[0].shape[:-1].numel()
            pieces.append((slice(start, stop), piece))
            start = stop
        return pieces

    def read(self, piece: Tensor, softcap_grad: Tensor | None = None) -> Tensor:
        """Logits x' in scratch, which may be overwritten."""
        block = self.buffer("logits", piece.shape[:-1].numel())
        block.view(piece.shape).copy_(piece)
        apply_transform(block, self.spec.transform, softcap_grad)
        return block

    def target_coefs(self, probabilities: Tensor | None, rows: int) -> Tensor:
        """The coefficients t_c of a block, in scratch; without ``probabilities`` those of smoothing."""
        coefs = self.buffer("target_coefs", rows)
        if probabilities is None:
            return coefs.copy_(self.smoothing)
        coefs.view(probabilities.shape).copy_(probabilities)
        return coefs.mul_(self.probability_grad).add_(self.smoothing)


def local_weight(weight: Tensor | None, shard: LocalShard, num_local_classes: int) -> Tensor | None:
    """The class weights of this process's classes."""
    return None if weight is None else weight[shard.vocab_start : shard.vocab_start + num_local_classes]


def put_where(block: Tensor, owned: Tensor, column: Tensor, value: Tensor | float) -> None:
    """Write ``value`` at the given columns of the rows that are ``owned``."""
    block.scatter_(1, column, torch.where(owned, value, block.gather(1, column)))


def value_where(block: Tensor, owned: Tensor, column: Tensor) -> Tensor:
    """What lies at the given columns of the rows that are ``owned``; 0 in the others."""
    return torch.where(owned, block.gather(1, column), 0)
