"""What is static about the pass over the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unixent.logit_transform import LogitTransform


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """The static side of `unixent_torch.kernel.row_losses`.

    Attributes:
        acc_dtype: dtype of every exp, log and sum.
        label_smoothing, z_loss: the options of those names.
        transform: what becomes of the logits first.
        readable: values can be read without stalling, so that rows may be treated by what is in them.
    """

    acc_dtype: torch.dtype
    label_smoothing: float
    z_loss: float
    transform: LogitTransform
    readable: bool
