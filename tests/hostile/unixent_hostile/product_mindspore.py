"""The cross product on MindSpore."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindspore import Parameter, Tensor
from mindspore.common.api import _pynative_executor

from unixent_hostile.product import Inapplicable, Product, Setting, direction
from unixent_hostile.views import Array


class MindSporeProduct(Product):
    name = "mindspore"
    transforms = ("eager", "grad", "jvp", "vmap", "jit")
    sampled = {"jit": 3, "vmap": 3, "jvp": 3}  # noqa: RUF012

    def own(self, value: Any) -> Any:
        return getattr(ms, value) if isinstance(value, str) else Tensor(value)

    def special(self, way: str, value: Array) -> Any:
        if way == "parameter" and value.dtype.kind == "f":
            return Parameter(Tensor(value), name="parameter")
        if way == "sparse" and value.ndim == 2:
            return Tensor(value).to_coo()
        raise Inapplicable

    def read(self, value: Any) -> Array:
        return value.asnumpy()  # type: ignore[no-any-return]

    # MindSpore does not say which gradients are asked for; docs/mindspore.md.
    constants_have_gradient_zero = True

    def judge(self, setting: Setting, given: Any) -> str:
        if setting.way == "foreign" and setting.transform == "jit":
            raise Inapplicable  # what MindSpore's compiler makes of an object that it does not know is its own affair
        return super().judge(setting, given)

    def apply(self, transform: str, function: Callable[..., Any], arrays: list[Any], moving: int | None) -> Any:
        arrays = [Tensor(array.asnumpy()) if isinstance(array, Parameter) else array for array in arrays]
        if transform in ("grad", "jvp"):
            if moving is None:
                raise Inapplicable
            if transform == "grad":
                try:
                    return tuple(ms.value_and_grad(function, moving)(*arrays))
                except BaseException:
                    # After an error within it MindSpore takes all that follows for part of the derivative.
                    _pynative_executor.clear_res()
                    raise
            before, after = tuple(arrays[:moving]), tuple(arrays[moving + 1 :])

            def of_moving(array: Any) -> Any:
                return function(*before, array, *after)

            return tuple(ms.jvp(of_moving, arrays[moving], Tensor(direction(arrays[moving].shape))))
        if transform == "vmap":
            return ms.vmap(function)(*(ms.ops.stack([array, array, array]) for array in arrays))[1]
        if transform == "jit":
            return ms.jit(function)(*arrays)
        return function(*arrays)


product = MindSporeProduct()
