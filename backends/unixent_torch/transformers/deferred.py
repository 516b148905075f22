"""Logits that are computed only if somebody reads them, and the head that returns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from unixent.errors import BackendError
from unixent.linear import linear_cross_entropy
from unixent_torch.compat import must_trace
from unixent_torch.transformers.head import Head, is_fsdp_unit, is_sharded
from unixent_torch.transformers.recorded import View, added, cross_entropy_options, recorded, viewed

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
_REQUIRES_GRAD, _BASE = Tensor.requires_grad.__get__, Tensor._base.__get__


@dataclass
class Log:
    """What became of the logits that a head returned once, and of all that was made from them without their values."""

    read_by: str | None = None  # the name of the first operation that needed values
    has_loss: bool = False
    hooks: list[Callable[[Tensor], Any]] = field(default_factory=list)


class DeferredLogits(Tensor):
    """Logits of a head that has not been applied: shape, dtype and device of logits, values when they are read.

    What the loss can do itself is recorded: a positive factor, tanh, a change of dtype, slices and other shapes, the
    sum of two; and `torch.nn.functional.cross_entropy` of them is the loss. Any other operation computes the logits,
    once, and goes on with those. A view reads the values of what it views: a change of one is seen in the other.
    """

    head: Head
    log: Log
    _values: Tensor | None
    _source: tuple[DeferredLogits, View] | None
    _differentiable: bool

    @staticmethod
    def __new__(
        cls, head: Head, dtype: torch.dtype, log: Log | None = None, source: tuple[DeferredLogits, View] | None = None
    ) -> DeferredLogits:
        shape = (*head.hidden.shape[:-1], head.weight.shape[0])
        deferred = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=head.hidden.device)
        deferred.head, deferred.log = head, Log() if log is None else log
        deferred._values, deferred._source = None, source
        deferred._differentiable = head.requires_grad and torch.is_grad_enabled()
        return deferred

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__()

    @property
    def values(self) -> Tensor | None:
        """The logits, or None as long as nobody has read them."""
        if self._values is None and self._source is not None:
            source, view = self._source
            self._values = None if source.values is None else view(source.values)
        return self._values

    def read(self, reader: str = "read") -> Tensor:
        """The logits, computed at the first call."""
        if self.values is None:
            if self._source is not None:
                source, view = self._source
                self._values = view(source.read(reader))
            else:
                with torch.set_grad_enabled(self._differentiable):
                    self._values = self.head.logits(self.dtype)
                _add_hooks(self._values, self.log.hooks)
            self.log.read_by = self.log.read_by or reader
        return self._values

    def loss(self, target: Tensor, **options: Any) -> Tensor:
        """`unixent.linear_cross_entropy` of what the logits are made of."""
        options |= self.head.loss_options()
        with self.head.gathered(), torch.set_grad_enabled(torch.is_grad_enabled() and self._differentiable):
            hidden, weight, bias = self.head.product()
            loss: Tensor = linear_cross_entropy(hidden, weight, target, bias=bias, **options)
        self.log.has_loss = True
        _add_hooks(loss, self.log.hooks)
        return loss

    def register_hook(self, hook: Callable[[Tensor], Any]) -> Any:
        """As of a tensor. That of FSDP only waits for the backward to come, which it does by the loss as well."""
        owner = getattr(getattr(hook, "func", hook), "__module__", "")
        if self.values is not None or not owner.startswith("torch.distributed.fsdp."):
            return self.read("register_hook").register_hook(hook)
        self.log.hooks.append(hook)
        return None

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _intercept(func, args, kwargs or {})

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

    def without_values(self, func: Any, rest: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What ``func`` returns, or NotImplemented where it needs values."""
        if func is functional.cross_entropy:
            options = cross_entropy_options(rest, kwargs) if self.ndim == 2 else None
            return NotImplemented if options is None else self.loss(**options, dtype=loss_dtype(self))
        if kwargs:
            return NotImplemented
        if func == _REQUIRES_GRAD:
            return self._differentiable
        if func == _BASE:
            return None
        other = rest[0] if len(rest) == 1 else None
        is_own = isinstance(other, torch.dtype | torch.device) and other in (self.dtype, self.device)
        is_own |= func is Tensor.float and self.dtype == torch.float32
        if func is Tensor.contiguous or (func in (Tensor.to, Tensor.float) and is_own):
            return self
        if isinstance(other, DeferredLogits) and other.values is None and other.shape == self.shape:
            total = added(self.head, func, other.head)
            dtype = torch.promote_types(self.dtype, other.dtype)
            return NotImplemented if total is None else DeferredLogits(total, dtype, self.log)
        changed = recorded(self.head, self.dtype, func, rest)
        if changed is not None:
            return DeferredLogits(*changed, self.log)
        seen = viewed(self.head, self.shape, func, rest)
        return NotImplemented if seen is None else DeferredLogits(seen[0], self.dtype, self.log, (self, seen[1]))


@torch.compiler.disable
def _intercept(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``func`` of deferred logits, outside of a program that torch.compile makes, as their head and loss are."""
    with torch._C.DisableTorchFunctionSubclass():
        if func in _METADATA:
            return func(*args, **kwargs)
        if args and isinstance(args[0], DeferredLogits) and args[0].values is None:
            result = args[0].without_values(func, tuple(args[1:]), kwargs)
            if result is not NotImplemented:
                return result
        name = _name(func)
        args, kwargs = pytree.tree_map(lambda leaf: _read(leaf, name), (tuple(args), dict(kwargs)))
    return func(*args, **kwargs)


def _add_hooks(tensor: Tensor, hooks: Sequence[Callable[[Tensor], Any]]) -> None:
    for hook in hooks if tensor.requires_grad else ():
        tensor.register_hook(hook)


def _name(func: Any) -> str:
    """Of a function, or of the attribute that it gets."""
    name = getattr(func, "__name__", str(func))
    return func.__self__.__name__ if name == "__get__" else str(name)


def _read(leaf: Any, reader: str) -> Any:
    return leaf.read(reader) if isinstance(leaf, DeferredLogits) else leaf


def loss_dtype(logits: Tensor) -> str:
    """The dtype of a loss: float32, or float64 of logits of that."""
    return "float64" if logits.dtype == torch.float64 else "float32"


class DeferredLinear(nn.Linear):
    """`torch.nn.Linear` as the head of a language model: same parameters and state, logits that are deferred.

    In a program of torch.compile it breaks the graph and runs eagerly; under ``fullgraph=True`` it computes its logits.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and must_trace():
            return super().forward(input)
        return self._deferred(input)

    @torch.compiler.disable
    def _deferred(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if is_sharded(weight):
            raise BackendError("fused: expected a head whose weight is whole; got one that is sharded: use fused=False")
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            input, weight = input.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        unit = self if is_fsdp_unit(self) else None
        return DeferredLogits(Head(input, weight, bias, unit=unit), input.dtype)
