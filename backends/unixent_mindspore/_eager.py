"""The arithmetic on CPU, eagerly: the NumPy backend's, on the memory of MindSpore's own tensors.

MindSpore's CPU kernels can't keep the accuracy that unixent promises (float32 ``Exp`` is off by up to 390 units in the
last place, ``Log1p`` returns 0 for small arguments) and go over the logits once per primitive. The NumPy backend works
in blocks that stay in cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Tensor

from unixent_mindspore._plan import Array, Plan


def to_host(tensor: Tensor | None) -> Array | None:
    """A NumPy view of an eager tensor; a widened copy of a bfloat16 one."""
    if tensor is None:
        return None
    array: Array = (tensor.astype(ms.float32) if tensor.dtype == ms.bfloat16 else tensor).asnumpy()
    return array


def from_host(array: Array, dtype: str) -> Tensor:
    """The array as a tensor of that dtype, on the same memory unless it has to be rounded to bfloat16."""
    tensor = Tensor.from_numpy(array)
    return tensor.astype(ms.bfloat16) if dtype == "bfloat16" else tensor


def eager_loss(plan: Plan) -> Callable[..., Any]:
    """The forward pass: `INPUTS` -> loss, or the two terms."""

    def run(*inputs: Tensor | None) -> Any:
        found = tuple(from_host(array, plan.result) for array in plan.solve([to_host(item) for item in inputs]))
        return found if plan.terms else found[0]

    return run


def eager_gradient(plan: Plan) -> Callable[..., Any]:
    """The backward pass: `INPUTS` and the upstream gradient -> the gradient, or several."""

    def run(*inputs: Tensor | None) -> Any:
        *arrays, upstream = (to_host(item) for item in inputs)
        found = zip(plan.gradients(arrays, upstream), plan.wrt_dtypes, strict=True)
        tensors = tuple(from_host(array, dtype) for array, dtype in found)
        return tensors if len(tensors) > 1 else tensors[0]

    return run
