"""The cross product on torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from unixent_hostile.product import Inapplicable, Product, Setting, direction
from unixent_hostile.views import Array


class TorchProduct(Product):
    name = "torch"
    transforms = ("eager", "grad", "func.grad", "vmap", "jvp", "compile", "export", "trace")
    sampled = {"compile": 4, "export": 3, "trace": 4}  # noqa: RUF012

    def own(self, value: Any) -> Any:
        return getattr(torch, value) if isinstance(value, str) else torch.tensor(value)

    def special(self, way: str, value: Array) -> Any:
        if way == "sparse":
            if not value.ndim:
                raise Inapplicable
            return torch.tensor(value).to_sparse()
        tensor = torch.tensor(value)
        if not tensor.is_floating_point():
            raise Inapplicable
        return torch.nn.Parameter(tensor)

    def read(self, value: Any) -> Array:
        return value.detach().numpy()  # type: ignore[no-any-return]

    def judge(self, setting: Setting, given: Any) -> str:
        if setting.argument == "grad_output" and setting.transform == "trace":
            raise Inapplicable  # torch.jit.trace records no gradient: value_and_grad itself is refused
        if setting.way == "layout" and setting.transform == "compile":
            raise Inapplicable  # torch's compiler makes a tensor of every NumPy array, and fails on such strides
        return super().judge(setting, given)

    def apply(self, transform: str, function: Callable[..., Any], arrays: list[Any], moving: int | None) -> Any:
        if transform in ("grad", "func.grad", "jvp"):
            if moving is None:
                raise Inapplicable
            return getattr(self, transform.replace(".", "_"))(function, arrays, moving)
        arrays = [array.detach() if isinstance(array, torch.nn.Parameter) else array for array in arrays]
        if transform == "vmap":
            stacked = [torch.stack([array, array, array]) for array in arrays]
            return torch.func.vmap(function)(*stacked)[1]
        if transform == "compile":
            torch._dynamo.reset()
            return torch.compile(function, backend="eager")(*arrays)
        if transform == "export":
            return torch.export.export(_Module(function), tuple(arrays)).module()(*arrays)
        if transform == "trace":
            return torch.jit.trace(function, tuple(arrays), check_trace=False)(*arrays)
        return function(*arrays)

    def grad(self, function: Callable[..., Any], arrays: list[Any], moving: int) -> Any:
        leaves = list(arrays)
        leaves[moving] = leaves[moving].detach().requires_grad_()
        value = function(*leaves)
        if not value.requires_grad:
            return value, torch.full((), torch.nan)
        (gradient,) = torch.autograd.grad(value.sum(), leaves[moving], allow_unused=True)
        return value, torch.full((), torch.nan) if gradient is None else gradient

    def func_grad(self, function: Callable[..., Any], arrays: list[Any], moving: int) -> Any:
        gradient, value = torch.func.grad_and_value(function, argnums=moving)(*(array.detach() for array in arrays))
        return value, gradient

    def jvp(self, function: Callable[..., Any], arrays: list[Any], moving: int) -> Any:
        inputs = [array.detach() for array in arrays]
        with forward_ad.dual_level():
            inputs[moving] = forward_ad.make_dual(inputs[moving], torch.tensor(direction(inputs[moving].shape)))
            value, tangent = forward_ad.unpack_dual(function(*inputs))
            return value, torch.full((), torch.nan) if tangent is None else tangent


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arrays: Any) -> Any:
        return self.function(*arrays)


product = TorchProduct()
