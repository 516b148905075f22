"""What MindSpore 2.10 does on NumPy 2, for which it was not compiled though its metadata allow it."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
from mindspore import Tensor


def warn() -> None:
    """Warn on NumPy 2, and take the one error that MindSpore raises there on its first use away from the caller."""
    if int(np.__version__.partition(".")[0]) < 2:
        return
    warnings.warn(
        f"MindSpore is not compiled for NumPy {np.__version__}: NumPy scalars as operands raise TypeError, and "
        "asnumpy(), item() and tolist() of bfloat16 tensors raise or crash the process. unixent's own results are "
        "right, but yours may not get that far. Install a working pair: pip install 'mindspore==2.10.0' 'numpy<2'",
        RuntimeWarning,
        stacklevel=2,
    )
    with contextlib.suppress(SystemError):  # once per process, at the first operation with a Python scalar
        Tensor([0.0]) + 1.0
