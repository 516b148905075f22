"""MindSpore in PyNative mode, by its own differentiation, and compiled by `mindspore.jit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import ml_dtypes
import numpy as np
from mindspore import Tensor, ops

from unixent_conformance.harness import EAGER, Harness, Mode, Unsupported
from unixent_conformance.oracle import Array


class MindSporeHarness(Harness):
    name = "mindspore"
    modes: tuple[Mode, ...] = (
        EAGER,
        Mode("grad", autodiff=True),
        Mode("jit", traced=True, autodiff=True, cases="core"),
    )

    def version(self) -> str:
        return f"mindspore {ms.__version__} on {ms.get_context('device_target')}, numpy {np.__version__}"

    def from_numpy(self, array: Array) -> Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return self.from_numpy(array.astype(np.float32)).astype(ms.bfloat16)
        # A view with the same order of strides, so that layouts other than C order are met.
        order = np.argsort([-stride for stride in array.strides], kind="stable")
        tensor = Tensor(np.array(array.transpose(order), order="C"))
        return tensor if list(order) == sorted(order) else tensor.permute(*(int(i) for i in np.argsort(order)))

    def to_numpy(self, array: Any) -> Array:
        if array.dtype == ms.bfloat16:
            return array.astype(ms.float32).asnumpy().astype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
        return array.asnumpy()  # type: ignore[no-any-return]

    def owns(self, value: Any) -> bool:
        return isinstance(value, Tensor)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        if not mode.traced:
            return function(*arrays)
        try:
            return ms.jit(function)(*arrays)
        except RuntimeError as error:
            if "Unable to cast Python instance of type <class 'int'>" in str(error):
                raise Unsupported("MindSpore compiles no int beyond 64 bits") from error
            raise

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        pullback = ops.GradOperation(get_all=True, sens_param=upstream is not None)

        def both(*inputs: Any) -> Any:
            return function(*inputs[: len(arrays)]), pullback(function)(*inputs)

        inputs = arrays if upstream is None else [*arrays, upstream]
        value, gradients = self.call(both, inputs, mode)
        return value, tuple(gradients[i] for i in wrt)


harness = MindSporeHarness()
