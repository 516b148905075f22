"""The suite's harness of torch: a device is waited for once an answer, not once an element."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from unixent_conformance.harness import Derivative
from unixent_conformance.harnesses.torch import TorchHarness


def test_a_gradient_by_forward_mode_is_uploaded_and_read_at_once() -> None:
    harness = TorchHarness()
    forward = next(mode for mode in harness.modes if mode.name == "forward")
    logits = torch.arange(12.0).reshape(3, 4)
    of = Derivative(lambda x: x.square().sum(-1), [logits], [0], torch.tensor([1.0, 2.0, 3.0]))
    uploads, reads = [], []

    def uploaded(self: Any, array: Any, real: Any = TorchHarness.from_numpy) -> Any:
        uploads.append(array)
        return real(self, array)

    def read(self: Any, array: Any, real: Any = TorchHarness.to_numpy) -> Any:
        reads.append(array)
        return real(self, array)

    with patch.object(TorchHarness, "from_numpy", uploaded), patch.object(TorchHarness, "to_numpy", read):
        _, (gradient,) = harness.gradient(of, forward)
    np.testing.assert_allclose(gradient, 2 * logits * torch.tensor([[1.0], [2.0], [3.0]]))
    assert len(uploads) == 2  # the directions, and the gradient
    assert len(reads) == 3  # the upstream gradient, the logits' shape and dtype, the changes
