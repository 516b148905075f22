"""MLX's arrays on the CPU, differentiated by `mlx.core.vjp`. It is lazy: a call is evaluated before it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

from unixent_conformance.harness import Derivative, Harness, Mode
from unixent_conformance.model import Array

mx.set_default_device(mx.cpu)


class MlxHarness(Harness):
    name = "mlx"

    def version(self) -> str:
        return f"mlx {version('mlx')} on {mx.default_device()}"

    def from_numpy(self, array: Array) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            return mx.array(np.ascontiguousarray(array).view(np.uint16)).view(mx.bfloat16)
        # MLX makes float32 of NumPy's float64 unless it is told.
        return mx.array(array, dtype=mx.float64 if array.dtype == np.float64 else None)

    def to_numpy(self, array: Any) -> Array:
        if array.dtype == mx.bfloat16:
            return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.array(array)

    def owns(self, value: Any) -> bool:
        return isinstance(value, mx.array)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        result = function(*arrays)
        mx.eval(result)
        return result

    def gradient(self, of: Derivative, mode: Mode) -> tuple[Any, tuple[Any, ...]]:
        value = of.function(*of.arrays)
        seed = mx.ones_like(value) if of.grad_output is None else of.grad_output.astype(value.dtype)
        (value,), grads = mx.vjp(of.of_moving, list(of.moving), [seed])
        mx.eval(value, grads)
        return value, tuple(grads)


harness = MlxHarness()
