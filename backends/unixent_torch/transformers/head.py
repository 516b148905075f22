"""What logits are a product of, and what a model did with them before its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from unixent.errors import BackendError


class Head(NamedTuple):
    """Logits that have not been computed: outer * tanh(scale * x), or scale * x, of x = hidden weight^T + bias + added.

    ``added`` are products of the same positions and classes, as a low-rank adapter of the head is, each with its scale;
    ``unit`` is the head where FSDP2 gathers its weight on its own, and only while the head runs.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    outer: float | None = None
    added: tuple[Head, ...] = ()
    unit: nn.Module | None = None

    @property
    def requires_grad(self) -> bool:
        operands = (self.hidden, self.weight, self.bias)
        return any(o is not None and o.requires_grad for o in operands) or any(h.requires_grad for h in self.added)

    def loss_options(self) -> dict[str, Any]:
        """The scale k and softcap a of a * tanh(k * x / a)."""
        if self.outer is None:
            return {"scale": self.scale}
        return {"scale": self.scale * self.outer, "softcap": self.outer}

    def logits(self, dtype: torch.dtype) -> Tensor:
        """The values, with gradients for the operands under grad mode."""
        with self.gathered():
            logits = functional.linear(self.hidden, self.weight, self.bias)
        for head in self.added:
            logits = logits + head.logits(head.hidden.dtype)
        logits = logits.to(dtype)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.outer is None else self.outer * torch.tanh(logits)

    def product(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden, weight and bias of the one product that x is: all hidden states and weights side by side."""
        hidden, weight, bias = self.hidden, self.weight, self.bias
        for head in self.added:
            dtype = torch.promote_types(hidden.dtype, head.hidden.dtype)
            hidden = torch.cat([hidden.to(dtype), head.hidden.to(dtype) * head.scale], dim=-1)
            weight = torch.cat([weight.to(dtype), head.weight.to(dtype)], dim=1)
            if head.bias is not None:
                scaled = head.bias.to(dtype) * head.scale
                bias = scaled if bias is None else bias.to(dtype) + scaled
        return hidden, weight, bias if bias is None else bias.to(hidden.dtype)

    def times(self, factor: float) -> Head:
        if self.outer is None:
            return self._replace(scale=self.scale * factor)
        return self._replace(outer=self.outer * factor)

    def plus(self, other: Head) -> Head | None:
        """The sum, or None where it is no sum of scaled products."""
        if self.outer is not None or other.outer is not None or self.scale != 1.0 or other.added:
            return None
        return self._replace(added=(*self.added, other))

    def at_positions(self, change: Callable[[Tensor], Tensor]) -> Head:
        """``change`` views the axes of positions differently; the last axis of what it takes stays."""
        added = tuple(head.at_positions(change) for head in self.added)
        return self._replace(hidden=change(self.hidden), added=added)

    def at_classes(self, classes: slice) -> Head:
        bias = None if self.bias is None else self.bias[classes]
        return self._replace(
            weight=self.weight[classes], bias=bias, added=tuple(head.at_classes(classes) for head in self.added)
        )

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The weight is whole inside: of an FSDP2 unit it is gathered again, and freed after."""
        weights = (self.weight, *(head.weight for head in self.added))
        if not any(weight.is_meta or weight.untyped_storage().size() == 0 for weight in weights):
            yield
        elif self.unit is None:
            raise BackendError(
                "fused: expected a head whose weight is whole until its loss; "
                "got one that was offloaded or sharded again: use fused=False"
            )
        else:
            self.unit.unshard()  # type: ignore[operator]
            try:
                yield
            finally:
                self.unit.reshard()  # type: ignore[operator]


def is_fsdp_unit(module: nn.Module) -> bool:
    return any(parent.__name__ == "FSDPModule" for parent in type(module).__mro__)


def is_sharded(weight: Tensor) -> bool:
    """A weight that is not whole: a DTensor, a parameter of DeepSpeed's ZeRO-3, a part of an FSDP1 flat parameter."""
    return hasattr(weight, "ds_id") or type(weight).__name__ == "DTensor" or weight.ndim != 2
