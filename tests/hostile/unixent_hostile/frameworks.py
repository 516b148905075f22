"""How a hostile call reaches each framework: arrays with their memory layouts, differentiation, the compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from unixent_conformance.harness import Harness
from unixent_conformance.harnesses import load
from unixent_hostile.drawing import Traits
from unixent_hostile.views import Array


class Framework:
    """NumPy, and what others change."""

    name = "numpy"
    traits = Traits(autodiff=False, native_module=False)

    @cached_property
    def harness(self) -> Harness:
        return load(self.name)

    def give(self, array: Array) -> Any:
        """The framework's array, where it can with the same memory; the arrays of most are copies."""
        return array

    def read(self, value: Any) -> Array:
        if not self.harness.owns(value):
            raise TypeError(f"the result is a {type(value).__module__}.{type(value).__qualname__}")
        return np.asarray(self.harness.to_numpy(value))

    def autograd(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], grad_output: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        """The value and its gradients by the framework's own differentiation."""
        raise NotImplementedError

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of arrays, compiled."""
        raise NotImplementedError

    def native_module(self, weight: Any, options: dict[str, Any], call: Any) -> Callable[..., Any]:
        """The framework's own module, with the defaults of the function."""
        raise NotImplementedError


class Torch(Framework):
    name = "torch"
    traits = Traits()

    def give(self, array: Array) -> Any:
        import torch

        half = array.dtype.name == "bfloat16"
        if not array.flags.aligned or not array.dtype.isnative or not array.flags.writeable:
            array = array.astype(array.dtype.newbyteorder("=") if not half else array.dtype)
        if any(step < 0 or step % array.itemsize for step in array.strides):
            array = np.array(array, order="C")
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if half else torch.from_numpy(array)

    def autograd(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], grad_output: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        import torch

        inputs = list(arrays)
        for i in wrt:
            if isinstance(inputs[i], torch.Tensor) and inputs[i].is_floating_point():
                inputs[i] = inputs[i].detach().requires_grad_()
        value = function(*inputs)
        above = torch.ones_like(value) if grad_output is None else grad_output.to(value.dtype)
        return value, torch.autograd.grad(value, [inputs[i] for i in wrt], above, materialize_grads=True)

    def native_module(self, weight: Any, options: dict[str, Any], call: Any) -> Callable[..., Any]:
        module = import_module("unixent_torch").CrossEntropyLoss
        return module(weight, **{"on_empty": "zero", "axis": -1, **options})  # type: ignore[no-any-return]


class Jax(Framework):
    name = "jax"
    traits = Traits(native_module=False, views=False, per_structure=64, compiled=0.3)

    def __init__(self) -> None:
        import jax

        jax.config.update("jax_enable_x64", True)

    def give(self, array: Array) -> Any:
        return self.harness.from_numpy(np.ascontiguousarray(array).reshape(array.shape))

    def autograd(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], grad_output: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        import jax
        import jax.numpy as jnp

        def of_moving(*moving: Any) -> Any:
            inputs = list(arrays)
            for i, array in zip(wrt, moving, strict=True):
                inputs[i] = array
            return function(*inputs)

        value, pullback = jax.vjp(of_moving, *(arrays[i] for i in wrt))
        above = jnp.ones_like(value) if grad_output is None else jnp.asarray(grad_output, value.dtype)
        return value, pullback(above)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import jax

        return jax.jit(function)  # type: ignore[no-any-return]


class MindSpore(Framework):
    name = "mindspore"
    traits = Traits(views=False, per_structure=64, compiled=0.03)

    def __init__(self) -> None:
        self.grad_operation = import_module("mindspore").ops.GradOperation  # no import where it is compiled

    def give(self, array: Array) -> Any:
        return self.harness.from_numpy(np.array(array, order="C"))

    def autograd(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], grad_output: Any
    ) -> tuple[Any, tuple[Any, ...]]:
        value = function(*arrays)
        # A tuple: the compiler calls a gradient with no list.
        inputs = arrays if grad_output is None else tuple(arrays) + (grad_output.astype(value.dtype),)  # noqa: RUF005
        gradients = self.grad_operation(get_all=True, sens_param=grad_output is not None)(function)(*inputs)
        return value, tuple(gradients[i] for i in wrt)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import mindspore

        return mindspore.jit(function)  # type: ignore[no-any-return]

    def native_module(self, weight: Any, options: dict[str, Any], call: Any) -> Callable[..., Any]:
        module = import_module("unixent_mindspore").CrossEntropyLoss
        return module(weight=weight, **{"dtype": call.dtype, **options})  # type: ignore[no-any-return]


FRAMEWORKS: dict[str, type[Framework]] = {each.name: each for each in (Framework, Torch, Jax, MindSpore)}
