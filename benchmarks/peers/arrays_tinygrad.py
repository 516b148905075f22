"""tinygrad's tensors on the CPU, differentiated by `Tensor.gradient`. It is lazy: a call is realized before it
returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import ml_dtypes
import numpy as np
from tinygrad import Tensor, dtypes

from unixent_conformance.harness import Derivative, Harness, Mode
from unixent_conformance.model import Array


class TinygradHarness(Harness):
    name = "tinygrad"

    def version(self) -> str:
        return f"tinygrad {version('tinygrad')} on {Tensor([0]).device}"

    def from_numpy(self, array: Array) -> Any:
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype == ml_dtypes.bfloat16:
            return Tensor(array.astype(np.float32)).cast(dtypes.bfloat16).realize()
        return Tensor(array).realize()

    def to_numpy(self, array: Any) -> Array:
        half = array.dtype == dtypes.bfloat16  # which its way to NumPy does not know
        values: Array = (array.cast(dtypes.float32) if half else array).numpy()
        return values.astype(ml_dtypes.bfloat16) if half else values

    def owns(self, value: Any) -> bool:
        return isinstance(value, Tensor)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        return function(*arrays).realize()

    def gradient(self, of: Derivative, mode: Mode) -> tuple[Any, tuple[Any, ...]]:
        leaves = [array.detach().clone().realize() for array in of.moving]
        value = of.of_moving(*leaves)
        seed = value.const_like(1) if of.grad_output is None else of.grad_output.cast(value.dtype)
        grads = value.gradient(*leaves, gradient=seed)
        Tensor.realize(value, *grads)
        return value, tuple(grads)


harness = TinygradHarness()
