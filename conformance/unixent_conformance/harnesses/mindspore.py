"""MindSpore in PyNative mode, by its own differentiation, compiled by `mindspore.jit`, by `ms.jvp` and under `ms.vmap`.

Forward mode gives a gradient one element at a time. Second derivatives are taken twice backward (grad).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import ml_dtypes
import numpy as np
from mindspore import Tensor, ops

from unixent_conformance.harness import EAGER, Harness, Mode, Unsupported
from unixent_conformance.model import Array, Tier


class MindSporeHarness(Harness):
    name = "mindspore"
    modes: tuple[Mode, ...] = (
        EAGER,
        Mode("grad", autodiff=True),
        Mode("jit", traced=True, autodiff=True, tier=Tier.CORE, transform="jit"),
        Mode("forward", autodiff=True, tier=Tier.FEW, transform="jvp"),
        Mode("vmap", traced=True, autodiff=True, tier=Tier.FEW, transform="vmap"),
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
        if mode.batched:
            return ms.vmap(function)(*arrays)
        if not mode.traced:
            return function(*arrays)
        try:
            return ms.jit(function)(*arrays)
        except RuntimeError as error:
            if "Unable to cast Python instance of type <class 'int'>" in str(error):
                raise Unsupported("MindSpore compiles no int beyond 64 bits") from error
            raise

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], grad_output: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        if mode.name == "forward":
            return self.forward_gradient(function(*arrays), arrays, wrt, grad_output, _jvp(function, arrays))
        pullback = ops.GradOperation(get_all=True, sens_param=grad_output is not None)

        def both(*inputs: Any) -> Any:
            return function(*inputs[: len(arrays)]), pullback(function)(*inputs)

        inputs = arrays if grad_output is None else [*arrays, grad_output]
        value, gradients = self.call(both, inputs, mode)
        return value, tuple(gradients[i] for i in wrt)

    def hvp(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Any],
        wrt: Sequence[int],
        grad_output: Any,
        directions: Sequence[Any],
        mode: Mode,
    ) -> tuple[Any, ...]:
        if mode.name == "forward":
            raise Unsupported("MindSpore's forward mode is its backward one taken twice, which is asked by itself")
        pullback = ops.GradOperation(get_all=True, sens_param=grad_output is not None)

        def grads(*inputs: Any) -> Any:
            gradients = pullback(function)(*inputs)
            return tuple(gradients[i] for i in wrt)

        inputs = arrays if grad_output is None else [*arrays, grad_output]
        products = ops.GradOperation(get_all=True, sens_param=True)(grads)(*inputs, tuple(directions))
        return tuple(products[i] for i in wrt)


def _jvp(function: Callable[..., Any], arrays: Sequence[Any]) -> Callable[[int, Any], Any]:
    def jvp(i: int, direction: Any) -> Any:
        before, after = tuple(arrays[:i]), tuple(arrays[i + 1 :])

        def of(moving: Any) -> Any:
            return function(*before, moving, *after)

        return ms.jvp(of, arrays[i], direction)[1]

    return jvp


harness = MindSporeHarness()
