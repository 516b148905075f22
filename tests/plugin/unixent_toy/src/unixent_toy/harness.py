"""How the conformance suite gets arrays into boxes and out of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from unixent_conformance.harness import Harness
from unixent_toy import Box


class ToyHarness(Harness):
    name = "toy"

    def from_numpy(self, array: np.ndarray[Any, Any]) -> Box:
        return Box(array)

    def to_numpy(self, array: Box) -> np.ndarray[Any, Any]:
        return array.values

    def owns(self, value: object) -> bool:
        return isinstance(value, Box)


harness = ToyHarness()
