"""What is static about the pass over the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unixent.logit_transform import LogitTransform


class KernelSpec(NamedTuple):
    """The static side of `unixent_numpy.kernel.row_losses`.

    Attributes:
        acc_dtype: dtype of every exp, log and sum.
        label_smoothing, z_loss: the options of those names.
        transform: what becomes of the logits first.
    """

    acc_dtype: np.dtype[Any]
    label_smoothing: float
    z_loss: float
    transform: LogitTransform
