"""The fused linear pass: a chunk of positions at a time through product, loss and the products of the gradient.

One buffer holds a chunk of logits in the accumulation dtype, whatever the dtype of the inputs; the pass over the logits
turns it into the chunk's gradient in place, and two more products turn that into a slice of the gradient of the hidden
states and an addend to the classifier's, which is accumulated over the chunks in the accumulation dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unixent.chunking import MIN_CHUNK, MIN_DEVICE_CHUNK, linear_chunk
from unixent_torch.kernel import row_losses
from unixent_torch.kernel.blocks import on_huge_pages
from unixent_torch.linear.products import products_of, widen
from unixent_torch.logits.reduction import LossSpec

# What a gradient may be asked of, in the order of `LinearOperands`.
NAMES = ("hidden", "classifier", "bias", "target")


class LinearOperands(NamedTuple):
    """The tensors of a call: hidden P + (D,), classifier (C, D), bias (C,), and the rest as `row_losses` takes it."""

    hidden: Tensor
    classifier: Tensor
    bias: Tensor | None
    target: Tensor
    weight: Tensor | None
    position_weight: Tensor | None


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """The static side of a call.

    Attributes:
        loss: what to do with the logits.
        chunk: number of positions whose logits exist at a time; None chooses.
        product_dtype: dtype that hidden and classifier are rounded to before they are multiplied (that of autocast), or
            None.
    """

    loss: LossSpec
    chunk: int | None
    product_dtype: torch.dtype | None

    def widen(self, x: Tensor) -> Tensor:
        """``x`` as it enters a wide product."""
        return widen(x, self.loss.kernel.acc_dtype, self.product_dtype)

    def chunk_of(self, hidden: Tensor, num_classes: int) -> int:
        """How many positions' logits of ``num_classes`` classes exist at a time."""
        count, width, itemsize = hidden.shape[:-1].numel(), hidden.shape[-1], self.loss.kernel.acc_dtype.itemsize
        least = MIN_CHUNK if hidden.is_cpu else MIN_DEVICE_CHUNK
        return linear_chunk(count, num_classes, width, itemsize, self.chunk, least)

    def chunks(self, operands: LinearOperands) -> list[slice]:
        """The chunks of the flattened positions."""
        count = operands.hidden.shape[:-1].numel()
        step = self.chunk_of(operands.hidden, operands.classifier.shape[0])
        starts = range(0, count, step)
        return list(map(slice, starts, (*starts[1:], count)))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Products in the dtype of what is multiplied. Devices such as meta have no autocast."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def linear_row_losses(
    operands: LinearOperands, grad_scale: Tensor | float | None, spec: LinearSpec, wrt: tuple[str, ...] = ()
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses P and the gradient of ``sum(grad_scale * losses)`` for each of ``wrt``, in the accumulation dtype.

    Args:
        operands: the tensors.
        grad_scale: in the accumulation dtype and broadcastable to P, or a number; None for 1.
        spec: the static options.
        wrt: what to differentiate with respect to, of `NAMES`. The gradient of target is in target's own dtype, since
            it is as large as the logits.
    """
    with without_autocast(operands.hidden.device):
        return LinearPass(operands, spec, wrt).run(grad_scale)


class LinearPass:
    """One call's memory, and its loop over chunks."""

    def __init__(self, operands: LinearOperands, spec: LinearSpec, wrt: tuple[str, ...]) -> None:
        hidden, classifier, bias, target, _, position_weight = operands
        self._operands, self._spec, self._acc_dtype = operands, spec, spec.loss.kernel.acc_dtype
        self._shape, (self._classes, self._width) = hidden.shape[:-1], classifier.shape
        self._count = self._shape.numel()
        self._hidden = hidden.reshape(self._count, self._width)
        self._target = target.reshape(self._count, self._classes) if target.is_floating_point() else target.reshape(-1)
        self._position_weight = None if position_weight is None else position_weight.reshape(-1)
        self._bias = None if bias is None else bias.to(self._acc_dtype)
        self._products = products_of(hidden, classifier, self._acc_dtype, spec.product_dtype)
        self._grads: dict[str, Tensor] = {}
        for name in wrt:
            self._grads[name] = self._new_gradient(name)
        # The logits' gradient is what the others are made of, but for the target's.
        self._kernel_wrt = (("logits",) if self._grads.keys() - {"target"} else ()) + (
            ("target",) if "target" in self._grads else ()
        )

    def _new_gradient(self, name: str) -> Tensor:
        if name == "target":
            return on_huge_pages(torch.empty_like(self._target))
        shape = self._hidden.shape if name == "hidden" else getattr(self._operands, name).shape
        gradient = on_huge_pages(torch.empty(shape, dtype=self._acc_dtype, device=self._hidden.device))
        return gradient if name == "hidden" and self._count else gradient.zero_()

    def run(self, grad_scale: Tensor | float | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The losses and the gradients."""
        if isinstance(grad_scale, Tensor) and grad_scale.ndim:
            grad_scale = grad_scale.expand(self._shape).reshape(-1)
        losses = torch.empty(self._count, dtype=self._acc_dtype, device=self._hidden.device)
        for rows, block in self.chunks():
            losses[rows] = self._row_losses(block, rows, grad_scale)
        return losses.view(self._shape), tuple(self._grads.values())

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of flattened positions and their logits, which are to become their gradient if any is asked for."""
        grads, logits = self._grads, None
        for rows in self._spec.chunks(self._operands):
            count = rows.stop - rows.start
            if logits is None:
                logits = torch.empty(count, self._classes, dtype=self._acc_dtype, device=self._hidden.device)
            states = self._products.states(self._hidden[rows])
            inactive = None
            if self._position_weight is not None:
                # 0 times a NaN of an inactive position would reach the classifier's gradient.
                inactive = (self._position_weight[rows] == 0).unsqueeze(1)
                states = states.masked_fill(inactive, 0)
            block = logits[:count]
            self._products.logits(states, block)
            if self._bias is not None:
                block.add_(self._bias)
            yield rows, block
            if "bias" in grads:
                grads["bias"] += block.sum(0)
            if not grads.keys() & {"hidden", "classifier"}:
                continue
            gradient = self._products.gradient(block)
            if "hidden" in grads:
                to_hidden = grads["hidden"][rows]
                self._products.to_hidden(gradient, to_hidden)
                if inactive is not None:
                    # 0 times a NaN of the classifier, likewise.
                    to_hidden.masked_fill_(inactive, 0)
            if "classifier" in grads:
                self._products.add_to_classifier(gradient, states, grads["classifier"])
        for name in grads:
            grads[name] = grads[name].view(getattr(self._operands, name).shape)

    def gradients(self) -> tuple[Tensor, ...]:
        """Those asked for, once all chunks have been worked."""
        return tuple(self._grads.values())

    def _row_losses(self, block: Tensor, rows: slice, grad_scale: Tensor | float | None) -> Tensor:
        """The losses of a chunk, whose logits become their gradient if any is asked for."""
        out: tuple[Tensor, ...] = ()
        for name in self._kernel_wrt:
            out += (block if name == "logits" else self._grads["target"][rows],)
        return row_losses(
            block,
            self._target[rows],
            self._operands.weight,
            None if self._position_weight is None else self._position_weight[rows],
            grad_scale[rows] if isinstance(grad_scale, Tensor) and grad_scale.ndim else grad_scale,
            self._spec.loss.kernel,
            self._kernel_wrt,
            out,
        )[0]
