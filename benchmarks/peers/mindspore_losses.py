"""`mindspore.ops.cross_entropy` and `mindspore.mint.nn.functional.cross_entropy`, in PyNative mode."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, mint, ops

from peers.adapting import peer

ms.runtime.launch_blocking()  # an error belongs to the case that made it


def _loss(
    function: Any,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    axis: int,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """Classes lie along axis 1 (0 without a position axis)."""
    classes = min(1, logits.ndim - 1)
    if "Float" in str(target.dtype):
        target = ops.moveaxis(target, axis, classes)
    return function(
        ops.moveaxis(logits, axis, classes),
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def _ops(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    return _loss(ops.cross_entropy, logits, target, weight, axis, reduction, ignore_index, label_smoothing)


def _mint(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    function = mint.nn.functional.cross_entropy
    return _loss(function, logits, target, weight, axis, reduction, ignore_index, label_smoothing)


ops_loss = peer("mindspore ops", _ops)
mint_loss = peer("mindspore mint", _mint)
