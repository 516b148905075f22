"""MindSpore in PyNative mode, by its own differentiation, compiled by `mindspore.jit`, by `ms.jvp` and under `ms.vmap`.

MindSpore queues eager operators, and its threads spin while they wait for each other: on two cores that is most of the
time of a small loss. So operators are computed as they are called, and an error is raised by the call that made it; the
mode "async" asks its cases as MindSpore runs them by default.

Forward mode gives a gradient one element at a time. Second derivatives are taken twice backward (grad).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import ml_dtypes
import numpy as np
from mindspore import Tensor, ops

from unixent_conformance.harness import EAGER, Derivative, Harness, Mode, Unsupported
from unixent_conformance.model import Array, Tier

_CANNOT_COMPILE = {
    "Unable to cast Python instance of type <class 'int'>": "MindSpore compiles no int beyond 64 bits",
    "MindSpore compiles a Python float as one": "MindSpore compiles a Python float as a float32",
}


class MindSporeHarness(Harness):
    name = "mindspore"
    modes: tuple[Mode, ...] = (
        EAGER,
        Mode("grad", autodiff=True),
        Mode("async", autodiff=True, tier=Tier.CORE),
        Mode("jit", traced=True, autodiff=True, tier=Tier.CORE, transform="jit"),
        Mode("forward", autodiff=True, tier=Tier.FEW, transform="jvp"),
        Mode("vmap", traced=True, autodiff=True, tier=Tier.FEW, transform="vmap"),
    )

    def in_worker(self) -> None:
        # Threads that a graph has no work for spin, and every core has a worker.
        ms.device_context.cpu.op_tuning.threads_num(1)

    def version(self) -> str:
        return f"mindspore {ms.__version__} on {ms.get_context('device_target')}, numpy {np.__version__}"

    def from_numpy(self, array: Array) -> Tensor:
        with _synchronously():
            return self._from_numpy(array)

    def _from_numpy(self, array: Array) -> Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return self._from_numpy(array.astype(np.float32)).astype(ms.bfloat16)
        # A view with the same order of strides, so that layouts other than C order are met.
        order = np.argsort([-stride for stride in array.strides], kind="stable")
        tensor = Tensor(np.array(array.transpose(order), order="C"))
        return tensor if list(order) == sorted(order) else tensor.permute(*(int(i) for i in np.argsort(order)))

    def to_numpy(self, array: Any) -> Array:
        if array.dtype == ms.bfloat16:
            with _synchronously():
                return array.astype(ms.float32).asnumpy().astype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
        return array.asnumpy()  # type: ignore[no-any-return]

    def write_all(self, arrays: Array) -> Sequence[Any]:
        """One by one: taking one out of a tensor costs more than the call that it is for."""
        return [self.from_numpy(array) for array in arrays]

    def owns(self, value: Any) -> bool:
        return isinstance(value, Tensor)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        if not mode.traced:
            with _synchronously(mode.name != "async"):
                return function(*arrays)
        with _compiler():
            return (ms.vmap if mode.batched else ms.jit)(function)(*arrays)

    def gradient(self, of: Derivative, mode: Mode) -> tuple[Any, tuple[Any, ...]]:
        if mode.name == "forward":
            with _synchronously():
                return self._forward(of)
        # The value is that of the pass which is differentiated.
        differentiated = ms.value_and_grad(
            of.function, grad_position=tuple(of.wrt), sens_param=of.grad_output is not None
        )

        def both(*inputs: Any) -> Any:
            return differentiated(*inputs)

        value, gradients = self.call(both, of.inputs, mode)
        return value, gradients if isinstance(gradients, tuple) else (gradients,)

    def _forward(self, of: Derivative) -> tuple[Any, tuple[Any, ...]]:
        """`ms.jvp` compiles each function that it is given once: the same one for all elements of an array."""
        functions = {i: _of_moving(of, i) for i in of.wrt}

        def jvp(i: int, direction: Tensor) -> Tensor:
            with _compiler():
                return ms.jvp(functions[i], of.arrays[i], direction)[1]

        return self.forward_gradient(of, of.function(*of.arrays), jvp)

    def hvp(self, of: Derivative, directions: Sequence[Any], mode: Mode) -> tuple[Any, ...]:
        if mode.name == "forward":
            raise Unsupported("MindSpore's forward mode is its backward one taken twice, which is asked by itself")

        def grads(*inputs: Any) -> Any:
            gradients = _pullback(of)(of.function)(*inputs)
            return tuple(gradients[i] for i in of.wrt)

        twice = ops.GradOperation(get_all=True, sens_param=True)(grads)
        products = self.call(twice, [*of.inputs, tuple(directions)], mode)
        return tuple(products[i] for i in of.wrt)


@contextmanager
def _synchronously(on: bool = True) -> Iterator[None]:
    """Each operator computed when it is called, or queued if not `on`, inside of the block alone: the process may go on
    to train. `mindspore.runtime.launch_blocking` cannot be taken back."""
    before = ms.get_context("pynative_synchronize")
    _set_synchronous(on)
    try:
        yield
    finally:
        _set_synchronous(before)


def _set_synchronous(on: bool) -> None:
    # What `set_context` does, which says each time that it is deprecated.
    ms.context._context().set_param(ms.context.ms_ctx_param.pynative_synchronize, on)


@contextmanager
def _compiler() -> Iterator[None]:
    """What MindSpore's compiler cannot represent is a refusal."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        for words, reason in _CANNOT_COMPILE.items():
            if words in str(error):
                raise Unsupported(reason) from error
        raise


def _pullback(of: Derivative) -> Any:
    return ops.GradOperation(get_all=True, sens_param=of.grad_output is not None)


def _of_moving(of: Derivative, i: int) -> Callable[[Any], Any]:
    function, before, after = of.function, tuple(of.arrays[:i]), tuple(of.arrays[i + 1 :])

    def of_moving(moving: Any) -> Any:
        return function(*before, moving, *after)

    return of_moving


harness = MindSporeHarness()
