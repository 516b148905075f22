"""What is static about the pass over the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class KernelSpec(NamedTuple):
    """The static side of `unixent_numpy.kernel.row_losses`.

    Attributes:
        acc_dtype: dtype of every exp, log and sum.
        label_smoothing, z_loss, softcap: the options of those names.
    """

    acc_dtype: np.dtype[Any]
    label_smoothing: float
    z_loss: float
    softcap: float | None
