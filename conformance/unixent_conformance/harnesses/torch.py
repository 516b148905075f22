"""PyTorch: eager by `value_and_grad`, eager by autograd, and traced whole by the compiler.

The compiled mode stops before code generation, which takes tens of seconds a case: what is captured, differentiated and
decomposed runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

from unixent_conformance.harness import EAGER, Harness, Mode
from unixent_conformance.oracle import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class TorchHarness(Harness):
    name = "torch"
    modes: tuple[Mode, ...] = (
        EAGER,
        Mode("autograd", autodiff=True),
        Mode("compile", traced=True, autodiff=True, cases="core"),
    )

    def version(self) -> str:
        return f"torch {torch.__version__}, {torch.get_num_threads()} threads"

    def from_numpy(self, array: Array) -> torch.Tensor:
        if any(step < 0 for step in array.strides):  # no tensor has such strides
            array = np.ascontiguousarray(array)
        # Strides are part of the case: the whole memory is copied, and the same view taken of it.
        flat, strides = np.empty(_extent(array), array.dtype), array.strides
        view = np.lib.stride_tricks.as_strided(flat, array.shape, strides)
        view[...] = array
        if array.dtype == _BFLOAT16:
            tensor = torch.from_numpy(flat.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(flat)
        return tensor.as_strided(array.shape, [step // array.itemsize for step in strides])

    def to_numpy(self, array: torch.Tensor) -> Array:
        array = array.detach().cpu()
        if array.dtype is torch.bfloat16:
            bits: Array = array.contiguous().view(torch.int16).numpy()
            return bits.view(_BFLOAT16)
        values: Array = array.numpy()
        return values

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        if mode.traced:
            # Each case is a function of its own to the compiler, which gives up on one code object after a few.
            torch.compiler.reset()
            return torch.compile(function, fullgraph=True, backend="aot_eager")(*arrays)
        return function(*arrays)

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        leaves = [array.detach().requires_grad_(i in wrt) for i, array in enumerate(arrays)]
        value = self.call(function, leaves, mode)
        seed = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
        return value, torch.autograd.grad(value, [leaves[i] for i in wrt], seed)


def _extent(array: Array) -> int:
    """Number of elements that an array with these strides spans."""
    if array.size == 0:
        return 0
    reach = sum((size - 1) * step for size, step in zip(array.shape, array.strides, strict=True))
    return int(reach // array.itemsize + 1)


harness = TorchHarness()
