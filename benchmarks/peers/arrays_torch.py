"""torch's tensors on the CPU: called eagerly and differentiated by autograd, or compiled by `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from unixent_conformance.harness import EAGER, Mode
from unixent_conformance.harnesses.torch import TorchHarness
from unixent_conformance.model import Tier


class EagerTorch(TorchHarness):
    modes = (EAGER,)


class CompiledTorch(TorchHarness):
    """With the code that the compiler generates, which takes seconds a case."""

    modes = (Mode("compile", traced=True, autodiff=True, tier=Tier.CORE, transform="jit"),)

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        torch.compiler.reset()  # each case is a function of its own
        return torch.compile(function, fullgraph=True)(*arrays)


torch.set_num_threads(1)  # for arrays of a few rows threads only wait for each other
harness = EagerTorch()
compiled = CompiledTorch()
