"""Paddle's tensors on the CPU, called eagerly, differentiated by `paddle.grad`."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import paddle

from unixent_conformance.harness import Derivative, Harness, Mode
from unixent_conformance.model import Array


class PaddleHarness(Harness):
    name = "paddle"

    def version(self) -> str:
        return f"paddle {paddle.__version__}"

    def from_numpy(self, array: Array) -> Any:
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype == ml_dtypes.bfloat16:
            return paddle.to_tensor(array.astype(np.float32)).astype("bfloat16")
        return paddle.to_tensor(array)

    def to_numpy(self, array: Any) -> Array:
        values: Array = (array.astype("float32") if array.dtype == paddle.bfloat16 else array).numpy()
        return values.astype(ml_dtypes.bfloat16) if array.dtype == paddle.bfloat16 else values

    def owns(self, value: Any) -> bool:
        return isinstance(value, paddle.Tensor)

    def gradient(self, of: Derivative, mode: Mode) -> tuple[Any, tuple[Any, ...]]:
        leaves = [array.detach().clone() for array in of.moving]
        for leaf in leaves:
            leaf.stop_gradient = False
        value = of.of_moving(*leaves)
        seed = None if of.grad_output is None else [of.grad_output.astype(value.dtype)]
        grads = paddle.grad([value], leaves, grad_outputs=seed, allow_unused=True)
        zeros = map(paddle.zeros_like, leaves)
        return value, tuple(zero if grad is None else grad for grad, zero in zip(grads, zeros, strict=True))


harness = PaddleHarness()
