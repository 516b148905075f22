"""torch's arrays on the CPU, called eagerly, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

from unixent_conformance.harness import Harness, Mode
from unixent_conformance.oracle import Array


class EagerTorch(Harness):
    name = "torch"

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def from_numpy(self, array: Array) -> torch.Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    def to_numpy(self, array: Any) -> Array:
        plain = array.detach().cpu().contiguous()
        if plain.dtype is torch.bfloat16:
            return np.asarray(plain.view(torch.uint16).numpy().view(ml_dtypes.bfloat16))
        return np.asarray(plain.numpy())

    def owns(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        leaves = [array.clone().requires_grad_(True) if i in wrt else array for i, array in enumerate(arrays)]
        value = self.call(function, leaves, mode)
        seed = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
        return value, torch.autograd.grad(value, [leaves[i] for i in wrt], seed)


torch.set_num_threads(1)  # arrays of a few rows: threads only wait for each other
harness = EagerTorch()
