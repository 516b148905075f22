"""What is static about the pass over the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Spec:
    """The static side of a problem.

    Attributes:
        acc_dtype: dtype of every exp, log and sum.
        smoothing, z_loss, softcap: the options of those names.
        host: values can be read without stalling, so that rows may be treated by what is in them.
    """

    acc_dtype: torch.dtype
    smoothing: float
    z_loss: float
    softcap: float | None
    host: bool
