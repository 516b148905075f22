"""The arithmetic on CPU, eagerly: the NumPy backend's, on the memory of MindSpore's own tensors.

MindSpore's CPU kernels can't keep the accuracy that unixent promises (float32 ``Exp`` is off by up to 390 units in the
last place, ``Log1p`` returns 0 for small arguments) and go over the logits once per primitive. The NumPy backend works
in blocks that stay in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from unixent_mindspore._plan import Array, Plan


def to_host(tensor: Tensor) -> Array:
    """A NumPy view of an eager tensor; a widened copy of a bfloat16 one."""
    array: Array = (tensor.astype(ms.float32) if tensor.dtype == ms.bfloat16 else tensor).asnumpy()
    return array


def from_host(array: Array, dtype: str) -> Tensor:
    """The array as a tensor of that dtype, on the same memory unless it has to be rounded to bfloat16."""
    tensor = Tensor.from_numpy(array)
    return tensor.astype(ms.bfloat16) if dtype == "bfloat16" else tensor


def arrays_of(plan: Plan, inputs: tuple[Tensor, ...]) -> list[Array | None]:
    return [None if dtype is None else to_host(item) for item, dtype in zip(inputs, plan.dtypes, strict=False)]


def eager_loss(plan: Plan) -> Callable[..., Any]:
    """The forward pass: `INPUTS` -> loss, or the two terms."""

    def run(*inputs: Tensor) -> Any:
        found = tuple(from_host(array, plan.result) for array in plan.solve(arrays_of(plan, inputs)))
        return found if plan.terms else found[0]

    return run


def eager_gradient(plan: Plan) -> Callable[..., Any]:
    """The backward pass: `INPUTS` and the upstream gradient -> the gradients of scores, classifier, bias and target."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = dict(zip(plan.wrt, plan.gradients(arrays_of(plan, inputs), to_host(inputs[7])), strict=True))
        return tuple(
            from_host(found[i], str(plan.dtypes[i]))
            if i in found
            else Tensor.from_numpy(np.zeros_like(to_host(inputs[i])))
            for i in range(4)
        )

    return run
