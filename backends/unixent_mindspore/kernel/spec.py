"""The static side of the pass over the logits."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
import numpy as np

from unixent.logit_transform import LogitTransform

FLOATS = ("float16", "bfloat16", "float32", "float64")
DTYPES = {name: getattr(ms, name) for name in FLOATS} | {
    name: getattr(ms, name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
DTYPES["bool"] = ms.bool_
# Stands for an array that there is not.
ABSENT = ms.Tensor(np.zeros(1), ms.float32)


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """What the pass has to know besides its arrays.

    Attributes:
        acc_dtype: dtype of every exp, log and sum.
        axis: where the classes lie.
        num_classes: how many of them the logits have.
        indexed: targets are class indices, not probabilities.
        label_smoothing, z_loss: the options of those names.
        transform: what becomes of the logits first.
        has_weight: there are class weights.
    """

    acc_dtype: str
    axis: int
    num_classes: int
    indexed: bool
    label_smoothing: float
    z_loss: float
    transform: LogitTransform
    has_weight: bool

    @property
    def dense_target(self) -> bool:
        """Whether more than one class of a position may have a target coefficient."""
        return not self.indexed or self.label_smoothing > 0
