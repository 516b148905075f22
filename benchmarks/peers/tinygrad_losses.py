"""`Tensor.cross_entropy` and `Tensor.sparse_categorical_crossentropy`."""

from __future__ import annotations

from dataclasses import replace
from subprocess import CalledProcessError
from typing import Any

from tinygrad import dtypes

from peers.adapting import REFUSALS, only, peer
from unixent_conformance.harness import Unsupported


def _cross_entropy(
    logits: Any, target: Any, *, axis: int = -1, reduction: str = "mean", label_smoothing: float = 0.0
) -> Any:
    """Classes lie along axis 1 (0 without a position axis)."""
    classes = min(1, logits.ndim - 1)

    def moved(array: Any) -> Any:
        order = [i for i in range(array.ndim) if i != axis % array.ndim]
        order.insert(classes, axis % array.ndim)
        return array.permute(*order)

    target = moved(target) if dtypes.is_float(target.dtype) else target
    return moved(logits).cross_entropy(target, reduction=reduction, label_smoothing=label_smoothing)


def _sparse(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    only("axis", axis, -1, logits.ndim - 1)
    if dtypes.is_float(target.dtype):
        raise Unsupported("takes class indices only")
    return logits.sparse_categorical_crossentropy(
        target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction=reduction
    )


# A C compiler that is too old for bfloat16 is no fault of the loss.
_REFUSALS = (*REFUSALS, CalledProcessError)

cross_entropy = replace(peer("tinygrad cross_entropy", _cross_entropy), refusals=_REFUSALS)
sparse = replace(peer("tinygrad sparse_categorical_crossentropy", _sparse), refusals=_REFUSALS)
