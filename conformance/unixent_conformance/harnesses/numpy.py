"""NumPy: arrays are what they are, and there is nothing to differentiate with."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.harness import Harness
from unixent_conformance.model import Array


class NumPyHarness(Harness):
    name = "numpy"

    def version(self) -> str:
        return f"numpy {np.__version__}"

    def from_numpy(self, array: Array) -> Array:
        return array

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def owns(self, value: Any) -> bool:
        return isinstance(value, np.ndarray | np.generic)  # a reduction gives a scalar


harness = NumPyHarness()
