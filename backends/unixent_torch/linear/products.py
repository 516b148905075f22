"""The three matrix products of a chunk: logits, the gradient of the hidden states, and the classifier's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from unixent_torch import compat

# Types of devices whose products of half operands can be accumulated and returned in float32. Tests add "cpu".
HALF_DEVICES = ["cuda"]

# How many half matrices a float32 one is the sum of: 24 bits by 8 or 11 of each; 16 and 11 are taken for TF32.
_TERMS = {
    torch.bfloat16: {"highest": 3, "high": 2, "medium": 1},
    torch.float16: {"highest": 2, "high": 1, "medium": 1},
}

# Classes whose widened copy of the classifier exists at a time, where its dtype is not that of the accumulation.
_TILE = 4096


class Products(Protocol):
    """What a pass over chunks asks; ``out`` has the accumulation dtype."""

    def states(self, hidden: Tensor) -> Tensor:
        """The hidden states of a chunk as they enter the products."""

    def logits(self, states: Tensor, out: Tensor) -> None:
        """``states @ classifier.T``."""

    def gradient(self, block: Tensor) -> tuple[Tensor, ...]:
        """The logits' gradient as it enters the next two: what adds up to the block, which may be overwritten."""

    def to_hidden(self, gradient: tuple[Tensor, ...], out: Tensor) -> None:
        """``gradient @ classifier``."""

    def add_to_classifier(self, gradient: tuple[Tensor, ...], states: Tensor, out: Tensor) -> None:
        """``out += gradient.T @ states``."""


def products_of(
    hidden: Tensor, classifier: Tensor, acc_dtype: torch.dtype, product_dtype: torch.dtype | None
) -> Products:
    """The products of a call, whose operands are rounded to ``product_dtype`` (that of autocast) first, if any."""
    dtype = product_dtype or (hidden.dtype if hidden.dtype == classifier.dtype else None)
    if (
        hidden.device.type in HALF_DEVICES
        and acc_dtype is torch.float32
        and dtype in (torch.float16, torch.bfloat16)
        and hasattr(torch.ops.aten.mm, "dtype_out")  # torch 2.8
    ):
        return HalfProducts(classifier.to(dtype))
    return WideProducts(classifier, acc_dtype, product_dtype)


def widen(x: Tensor, acc_dtype: torch.dtype, product_dtype: torch.dtype | None) -> Tensor:
    """``x`` as it enters a wide product: rounded if it has to be, then in the accumulation dtype."""
    return (x if product_dtype is None else x.to(product_dtype)).to(acc_dtype)


class WideProducts:
    """In the accumulation dtype: what is narrower is widened, of the classifier some classes at a time.

    float32 is multiplied as torch is set up to: as such, or, where ``torch.backends`` allows TF32, with that.
    """

    def __init__(self, classifier: Tensor, acc_dtype: torch.dtype, product_dtype: torch.dtype | None) -> None:
        self._classifier, self._dtypes = classifier, (acc_dtype, product_dtype)
        # A classifier that enters the products as it is needs no tiles.
        self._as_is = classifier.dtype == acc_dtype and product_dtype is None

    def states(self, hidden: Tensor) -> Tensor:
        return widen(hidden, *self._dtypes)

    def logits(self, states: Tensor, out: Tensor) -> None:
        if self._as_is:
            torch.mm(states, self._classifier.t(), out=out)
        else:
            for tile, classifier in self._tiles():
                torch.mm(states, classifier.t(), out=out[:, tile])

    def gradient(self, block: Tensor) -> tuple[Tensor, ...]:
        return (block,)

    def to_hidden(self, gradient: tuple[Tensor, ...], out: Tensor) -> None:
        (block,) = gradient
        if self._as_is:
            torch.mm(block, self._classifier, out=out)
        else:
            out.zero_()
            for tile, classifier in self._tiles():
                out.addmm_(block[:, tile], classifier)

    def add_to_classifier(self, gradient: tuple[Tensor, ...], states: Tensor, out: Tensor) -> None:
        (block,) = gradient
        out.addmm_(block.t(), states)

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, self._classifier.shape[0], _TILE):
            tile = slice(start, start + _TILE)
            yield tile, widen(self._classifier[tile], *self._dtypes)


class HalfProducts:
    """Of half operands, accumulated in float32, in a fraction of the time that a GPU takes for float32 operands.

    The logits' gradient is float32, so it enters as a sum of half matrices, each what rounding left of the one before:
    as many as keep the digits of float32, or as few as `torch.set_float32_matmul_precision` allows, "medium" one
    (Henry, Tang and Heinecke, Leveraging the bfloat16 artificial intelligence datatype, 2019). float16, whose exponents
    end at 2^-24, gets it times a power of two.
    """

    def __init__(self, classifier: Tensor) -> None:
        self._classifier = classifier
        self._num_terms = _TERMS[classifier.dtype][compat.float32_matmul_precision()]
        self._terms: tuple[Tensor, ...] = ()
        self._unscale: Tensor | None = None

    def states(self, hidden: Tensor) -> Tensor:
        return hidden.to(self._classifier.dtype)

    def logits(self, states: Tensor, out: Tensor) -> None:
        mm(states, self._classifier.t(), out)

    def gradient(self, block: Tensor) -> tuple[Tensor, ...]:
        if not self._terms:
            dtype = self._classifier.dtype
            self._terms = tuple([torch.empty_like(block, dtype=dtype) for _ in range(self._num_terms)])
        terms = tuple([term[: len(block)] for term in self._terms])
        if self._classifier.dtype is torch.float16:
            self._unscale = _scale_to_float16_(block)
        for i, term in enumerate(terms):
            term.copy_(block)
            if i + 1 < len(terms):
                block.sub_(term)
        return terms

    def to_hidden(self, gradient: tuple[Tensor, ...], out: Tensor) -> None:
        first, *rest = reversed(gradient)  # the smallest first
        mm(first, self._classifier, out)
        for term in rest:
            add_mm(term, self._classifier, out)
        if self._unscale is not None:
            out.mul_(self._unscale)

    def add_to_classifier(self, gradient: tuple[Tensor, ...], states: Tensor, out: Tensor) -> None:
        total = out if self._unscale is None else torch.zeros_like(out)
        for term in reversed(gradient):
            add_mm(term.t(), states, total)
        if self._unscale is not None:
            out.add_(total.mul_(self._unscale))


def _scale_to_float16_(block: Tensor) -> Tensor:
    """Multiply by a power of two that brings the largest finite entry to some 2^15, in place; its inverse, 0-d."""
    low, high = torch.aminmax(block, dim=1)
    largest = torch.maximum(-low, high).nan_to_num(0.0, 0.0).amax()
    exponent = (15 - torch.frexp(largest).exponent).clamp(max=120)
    one = torch.ones_like(largest)
    block.mul_(torch.ldexp(one, exponent))
    return torch.ldexp(one, -exponent)


def mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    """The product of half matrices, accumulated in float32 and not rounded."""
    torch.mm(a, b, out_dtype=torch.float32, out=out)


def add_mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    """`mm`, added to ``out``."""
    if _adds_in_float32(out.device):
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.add_(torch.mm(a, b, out_dtype=torch.float32))


@cache
def _adds_in_float32(device: torch.device) -> bool:
    """Whether this release of torch adds a product of half matrices to a float32 one."""
    half, out = torch.zeros(16, 16, dtype=torch.bfloat16, device=device), torch.zeros(16, 16, device=device)
    try:
        torch.addmm(out, half, half, out_dtype=torch.float32, out=out)
    except (RuntimeError, TypeError):
        return False
    return True
