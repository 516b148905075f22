"""Logits that are computed only if somebody reads them, and the head that returns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from unixent.errors import BackendError

# What is known of logits without their values.
_METADATA = {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_sparse", "is_cuda")
} | {
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.element_size,
    Tensor.__len__,
}
_SCALED = {Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul}
_DIVIDED = {Tensor.div, Tensor.__truediv__, torch.div, Tensor.true_divide, torch.true_divide}
_TANH = {Tensor.tanh, torch.tanh}


class Head(NamedTuple):
    """What logits are a product of, and what the model did with them since: outer * tanh(scale * x), or scale * x."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    outer: float | None = None

    def loss_options(self) -> dict[str, Any]:
        """The scale k and softcap a of a * tanh(k * x / a)."""
        if self.outer is None:
            return {"scale": self.scale}
        return {"scale": self.scale * self.outer, "softcap": self.outer}

    def logits(self, dtype: torch.dtype) -> Tensor:
        """The values, with gradients for hidden, weight and bias under grad mode."""
        logits = functional.linear(self.hidden, self.weight, self.bias).to(dtype)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.outer is None else self.outer * torch.tanh(logits)

    def times(self, factor: float) -> Head:
        if self.outer is None:
            return self._replace(scale=self.scale * factor)
        return self._replace(outer=self.outer * factor)


class DeferredLogits(Tensor):
    """Logits of a head that has not been applied: shape, dtype and device of logits, values when they are read.

    A positive factor, tanh and a change to a wider dtype are recorded, since the loss takes them as scale, softcap and
    its own accumulation. Any other operation computes the logits, once, and goes on with those; `read_by` is its name.
    """

    head: Head
    values: Tensor | None
    read_by: str | None

    @staticmethod
    def __new__(cls, head: Head, dtype: torch.dtype) -> DeferredLogits:
        shape = (*head.hidden.shape[:-1], head.weight.shape[0])
        deferred = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=head.hidden.device)
        deferred.head, deferred.values, deferred.read_by = head, None, None
        return deferred

    def __init__(self, head: Head, dtype: torch.dtype) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in _METADATA:
                return func(*args, **kwargs)
            if args and isinstance(args[0], DeferredLogits) and args[0].values is None:
                deferred = _record(args[0], func, args[1:], kwargs)
                if deferred is not None:
                    return deferred
            name = getattr(func, "__name__", str(func))
            args, kwargs = pytree.tree_map(lambda leaf: _read(leaf, name), (tuple(args), dict(kwargs)))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # What comes from C++ or past __torch_function__: values are read there, too.
        args, kwargs = pytree.tree_map(lambda leaf: _read(leaf, str(func)), (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)

    def read(self, reader: str = "read") -> Tensor:
        """The logits themselves, computed at the first call."""
        if self.values is None:
            if self.head.weight.is_meta or self.head.weight.untyped_storage().size() == 0:
                raise BackendError("logits: the head's weight was offloaded or sharded again before they were read")
            self.values, self.read_by = self.head.logits(self.dtype), reader
        return self.values


def _read(leaf: Any, reader: str) -> Any:
    return leaf.read(reader) if isinstance(leaf, DeferredLogits) else leaf


def _record(deferred: DeferredLogits, func: Any, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Deferred logits after ``func``, or None where the loss has no option for it."""
    head, dtype = deferred.head, deferred.dtype
    factor = rest[0] if len(rest) == 1 and not kwargs and type(rest[0]) in (int, float) and rest[0] > 0 else None
    if func in _SCALED and factor is not None:
        return DeferredLogits(head.times(factor), dtype)
    if func in _DIVIDED and factor is not None:
        return DeferredLogits(head.times(1 / factor), dtype)
    if func in _TANH and not rest and not kwargs and head.outer is None:
        return DeferredLogits(head._replace(outer=1.0), dtype)
    if func is Tensor.float and not rest and not kwargs:
        wider = torch.promote_types(dtype, torch.float32)
        return DeferredLogits(head, wider) if wider is torch.float32 else None
    if func is Tensor.to and len(rest) == 1 and not kwargs and rest[0] in (dtype, deferred.device):
        return deferred
    if func is Tensor.to and len(rest) == 1 and not kwargs and rest[0] is torch.float32 and dtype.itemsize < 4:
        return DeferredLogits(head, torch.float32)
    if func is Tensor.contiguous and not rest and not kwargs:
        return deferred
    return None


class DeferredLinear(nn.Linear):
    """`torch.nn.Linear` as the head of a language model: same parameters and state, logits that are deferred.

    Where the weight is only there while the layer runs (an FSDP2 unit of its own), and in a graph that torch.compile
    traces, it computes its logits at once.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if hasattr(weight, "ds_id") or type(weight).__name__ == "DTensor":
            raise BackendError("fused: expected a head whose weight is whole; got one that is sharded: use fused=False")
        if torch.compiler.is_compiling() or _is_fsdp_unit(self) or "weight" in getattr(self, "parametrizations", ()):
            return super().forward(input)
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return DeferredLogits(Head(input, weight, bias), input.dtype)


def _is_fsdp_unit(module: nn.Module) -> bool:
    return any(parent.__name__ == "FSDPModule" for parent in type(module).__mro__)
