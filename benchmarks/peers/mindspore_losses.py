"""`mindspore.ops.cross_entropy` in PyNative mode and `mindspore.mint.nn.functional.cross_entropy` compiled.

mint is for Ascend. On a CPU its operators have no kernels in PyNative mode ("The kernel LogSoftmaxExt unregistered"),
while `mindspore.jit` lowers most of them to kernels that are there.
"""

from __future__ import annotations

from functools import cache
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
    return _loss(_compiled_mint, logits, target, weight, axis, reduction, ignore_index, label_smoothing)


def _compiled_mint(
    logits: Tensor, target: Tensor, weight: Tensor | None, *, ignore_index: int, reduction: str, label_smoothing: float
) -> Tensor:
    return _mint_function(ignore_index, reduction, label_smoothing)(logits, target, weight)


@cache
def _mint_function(ignore_index: int, reduction: str, label_smoothing: float) -> Any:
    function = mint.nn.functional.cross_entropy

    def of_arrays(logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        return function(
            logits,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    return ms.jit(of_arrays)


ops_loss = peer("mindspore ops", _ops)
mint_loss = peer("mindspore mint", _mint)
