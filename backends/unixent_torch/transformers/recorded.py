"""Operations on logits that the loss knows as well, so that they need no logits: what `DeferredLogits` records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unixent_torch.transformers.head import Head

_SCALED = {Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul}
_DIVIDED = {Tensor.div, Tensor.__truediv__, torch.div, Tensor.true_divide, torch.true_divide}
_TANH = {Tensor.tanh, torch.tanh}
_ADDED = {Tensor.add, Tensor.__add__, torch.add}
_SHAPED = {Tensor.view, Tensor.reshape, torch.reshape}

View = Callable[[Tensor], Tensor]


def recorded(head: Head, dtype: torch.dtype, func: Any, rest: Sequence[Any]) -> tuple[Head, torch.dtype] | None:
    """What ``func(logits, *rest)`` is as a head and a dtype of its own values, or None where the loss has no option."""
    value = rest[0] if len(rest) == 1 else None
    positive = type(value) in (int, float) and value > 0  # type: ignore[operator]
    if func in _SCALED and positive:
        return head.times(value), dtype  # type: ignore[arg-type]
    if func in _DIVIDED and positive:
        return head.times(1 / value), dtype  # type: ignore[operator]
    if func in _TANH and not rest and head.outer is None:
        return head._replace(outer=1.0), dtype
    if func is Tensor.float and not rest and torch.promote_types(dtype, torch.float32) is torch.float32:
        return head, torch.float32
    if func is Tensor.to and isinstance(value, torch.dtype) and _holds(value, head, dtype):
        return head, value
    return None


def added(head: Head, func: Any, other: Head) -> Head | None:
    """The same of the sum of two."""
    return head.plus(other) if func in _ADDED else None


def _holds(wanted: torch.dtype, head: Head, dtype: torch.dtype) -> bool:
    """A dtype that is wider, or that of the head's own product, whose rounding the loss leaves out."""
    return (wanted is torch.float32 and dtype.itemsize < 4) or (wanted is head.hidden.dtype and head.outer is None)


def viewed(head: Head, shape: torch.Size, func: Any, rest: Sequence[Any]) -> tuple[Head, View] | None:
    """A view of logits that leaves each position's classes together: its head, and the same view of the values."""
    if func in _SHAPED:
        new = tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], Sequence) else tuple(rest)
        if not new or new[-1] != shape[-1] or not all(isinstance(size, int) for size in new):
            return None
        return head.at_positions(lambda t: t.reshape(*new[:-1], t.shape[-1])), lambda t: t.reshape(new)
    if func is Tensor.flatten and rest == (0, 1) and len(shape) > 2:
        return head.at_positions(lambda t: t.flatten(0, 1)), lambda t: t.flatten(0, 1)
    if func is Tensor.__getitem__:
        slices = _slices(rest[0], len(shape))
        if slices is None:
            return None
        *positions, classes = slices
        if positions != [slice(None)] * len(positions):
            head = head.at_positions(lambda t: t[tuple(positions)])
        if classes != slice(None):
            head = head.at_classes(classes)
        return head, lambda t: t[tuple(slices)]
    return None


def _slices(index: Any, ndim: int) -> list[slice] | None:
    """An index as a slice for each axis, or None where it is more than slices."""
    index = index if isinstance(index, tuple) else (index,)
    if not all(i is Ellipsis or isinstance(i, slice) for i in index) or sum(i is Ellipsis for i in index) > 1:
        return None
    missing = [slice(None)] * (ndim - sum(i is not Ellipsis for i in index))
    at = next((n for n, i in enumerate(index) if i is Ellipsis), len(index))
    return [*index[:at], *missing, *index[at + 1 :]]


def cross_entropy_options(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of ``functional.cross_entropy(logits, ...)`` as those of ours; None where they are others."""
    names = ("target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.pop("size_average", None) is not None or given.pop("reduce", None) is not None:
        return None
    return {**given, "on_empty": "nan"}
