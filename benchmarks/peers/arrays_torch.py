"""torch's tensors on the CPU, called eagerly, differentiated by autograd."""

from __future__ import annotations

import torch

from unixent_conformance.harness import EAGER
from unixent_conformance.harnesses.torch import TorchHarness


class EagerTorch(TorchHarness):
    modes = (EAGER,)


torch.set_num_threads(1)  # for arrays of a few rows threads only wait for each other
harness = EagerTorch()
