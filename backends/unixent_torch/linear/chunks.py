"""The fused linear kernel: a chunk of positions at a time through product, loss and the products of the gradient.

One buffer holds a chunk of logits in the accumulation dtype, whatever the dtype of the inputs; the loss kernel turns it
into the chunk's gradient in place, and two more products turn that into a slice of the gradient of the hidden states
and an addend to the classifier's, which is accumulated over the chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unixent.chunking import linear_chunk
from unixent_torch.kernel.blocks import on_huge_pages
from unixent_torch.kernel.composed import solve
from unixent_torch.kernel.spec import Spec

# Classes whose widened copy of the classifier exists at a time, where its dtype is not that of the accumulation.
_TILE = 4096


class LinearOperands(NamedTuple):
    """The tensors of a problem: hidden P + (D,), classifier (C, D), bias (C,), and the rest as `solve` takes it."""

    hidden: Tensor
    classifier: Tensor
    bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    v: Tensor | None


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """The static side of a problem.

    Attributes:
        rows: what to do with the logits.
        chunk: number of positions whose logits exist at a time; None chooses.
        rounded: dtype that hidden and classifier are rounded to before they are multiplied (that of autocast), or None.
    """

    rows: Spec
    chunk: int | None
    rounded: torch.dtype | None

    def widen(self, x: Tensor) -> Tensor:
        """``x`` as it enters a product: rounded if it has to be, then in the accumulation dtype."""
        return (x if self.rounded is None else x.to(self.rounded)).to(self.rows.acc_dtype)

    def slices(self, operands: LinearOperands) -> Iterator[slice]:
        """The chunks of the flattened positions."""
        count, (classes, width) = operands.hidden.shape[:-1].numel(), operands.classifier.shape
        step = linear_chunk(count, classes, width, self.rows.acc_dtype.itemsize, self.chunk)
        return (slice(start, min(start + step, count)) for start in range(0, count, step))


def solve_linear(
    operands: LinearOperands, factor: Tensor | float | None, spec: LinearSpec, wrt: tuple[str, ...] = ()
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses of shape P, and the gradient of ``sum(factor * loss)`` for each of ``wrt``, all in the accumulation dtype.

    Args:
        operands: the tensors.
        factor: in the accumulation dtype and broadcastable to P, or a number; None for 1.
        spec: the static options.
        wrt: what to differentiate with respect to: "hidden", "classifier", "bias", "target". The gradient of target is
            in target's own dtype, since it is as large as the logits.
    """
    device = operands.hidden.device.type
    with torch.autocast(device, enabled=False):
        return Fused(operands, spec, wrt).run(factor)


class Fused:
    """One call's memory, and its loop over chunks."""

    def __init__(self, operands: LinearOperands, spec: LinearSpec, wrt: tuple[str, ...]) -> None:
        hidden, classifier, bias, target, _, v = operands
        self._operands, self._spec, self._kind = operands, spec, spec.rows.acc_dtype
        self._shape, (self._classes, self._width) = hidden.shape[:-1], classifier.shape
        self._count = self._shape.numel()
        self._hidden = hidden.reshape(self._count, self._width)
        self._target = target.reshape(self._count, self._classes) if target.is_floating_point() else target.reshape(-1)
        self._v = None if v is None else v.reshape(-1)
        self._bias = None if bias is None else bias.to(self._kind)
        # A classifier that enters the products as it is needs no tiles.
        self._as_is = classifier.dtype == self._kind and spec.rounded is None
        self._grads = {name: self._new_gradient(name) for name in wrt}

    def _new_gradient(self, name: str) -> Tensor:
        operands, kind = self._operands, self._kind
        if name == "target":
            return on_huge_pages(torch.empty_like(self._target))
        shape = self._hidden.shape if name == "hidden" else getattr(operands, name).shape
        gradient = on_huge_pages(torch.empty(shape, dtype=kind, device=operands.hidden.device))
        return gradient if name == "hidden" and self._count else gradient.zero_()

    def run(self, factor: Tensor | float | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The losses and the gradients."""
        grads, kind, device = self._grads, self._kind, self._hidden.device
        if isinstance(factor, Tensor) and factor.ndim:
            factor = factor.expand(self._shape).reshape(-1)
        losses = torch.empty(self._count, dtype=kind, device=device)
        logits: Tensor | None = None
        for here in self._spec.slices(self._operands):
            rows = here.stop - here.start
            logits = torch.empty(rows, self._classes, dtype=kind, device=device) if logits is None else logits
            dead = None if self._v is None else (self._v[here] == 0).unsqueeze(1)
            states = self._spec.widen(self._hidden[here])
            if dead is not None:
                # 0 times a NaN of a position that doesn't exist would reach the classifier's gradient.
                states = states.masked_fill(dead, 0)
            block = self._product(states, logits[:rows])
            losses[here] = self._losses(block, here, factor)
            if "hidden" in grads:
                self._to_hidden(block, grads["hidden"][here], dead)
            if "classifier" in grads:
                grads["classifier"].addmm_(block.t(), states)
            if "bias" in grads:
                grads["bias"] += block.sum(0)
        found = (grad.view(getattr(self._operands, name).shape) for name, grad in grads.items())
        return losses.view(self._shape), tuple(found)

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self._classes, _TILE):
            tile = slice(start, start + _TILE)
            yield tile, self._spec.widen(self._operands.classifier[tile])

    def _product(self, states: Tensor, out: Tensor) -> Tensor:
        if self._as_is:
            torch.mm(states, self._operands.classifier.t(), out=out)
        else:
            for tile, part in self._tiles():
                torch.mm(states, part.t(), out=out[:, tile])
        return out if self._bias is None else out.add_(self._bias)

    def _losses(self, block: Tensor, here: slice, factor: Tensor | float | None) -> Tensor:
        """The losses of a chunk, whose logits become the gradient of ``sum(factor * loss)`` if any is asked for."""
        wrt, out = [], []
        if self._grads.keys() - {"target"}:
            wrt.append("logits")
            out.append(block)
        if "target" in self._grads:
            wrt.append("target")
            out.append(self._grads["target"][here])
        return solve(
            block,
            self._target[here],
            self._operands.weight,
            None if self._v is None else self._v[here],
            factor[here] if isinstance(factor, Tensor) and factor.ndim else factor,
            self._spec.rows,
            tuple(wrt),
            tuple(out),
        )[0]

    def _to_hidden(self, block: Tensor, out: Tensor, dead: Tensor | None) -> None:
        if self._as_is:
            torch.mm(block, self._operands.classifier, out=out)
        else:
            out.zero_()
            for tile, part in self._tiles():
                out.addmm_(block[:, tile], part)
        if dead is not None:
            # 0 times a NaN of the classifier, likewise.
            out.masked_fill_(dead, 0)
