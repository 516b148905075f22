"""What NumPy leaves open: the type of an array, whatever its shape and dtype, and bfloat16."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def bfloat16() -> np.dtype[Any]:
    """The dtype of that name, which comes with the package ml_dtypes: without it no such array exists."""
    dtype: np.dtype[Any] = np.dtype(import_module("ml_dtypes").bfloat16)
    return dtype
