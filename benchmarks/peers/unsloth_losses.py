"""unsloth's Triton cross-entropy, through Triton's interpreter.

`unsloth` and `unsloth_zoo` look for a GPU when they are imported, so only the modules of the loss are; unsloth's own
switch for tests on a CPU lets these load.
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from unixent_conformance import triton_interpreter

triton_interpreter.enable()

from peers.adapting import StandIn, only, peer  # noqa: E402
from unixent_conformance.harness import Unsupported  # noqa: E402


def _package(name: str) -> ModuleType:
    """A package whose modules can be imported, without its own code."""
    spec = find_spec(name)
    module = ModuleType(name)
    module.__path__ = [] if spec is None else list(spec.submodule_search_locations or [])
    return module


os.environ["UNSLOTH_ALLOW_CPU"] = "1"
# Where it writes code that it generates, the working directory otherwise.
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(Path(tempfile.gettempdir(), "unsloth_compiled_cache")))
sys.modules.update({name: _package(name) for name in ("unsloth", "unsloth_zoo")})
sys.modules["unsloth.kernels"] = ModuleType("unsloth.kernels")
sys.modules["unsloth.kernels"].__path__ = [str(Path(path, "kernels")) for path in sys.modules["unsloth"].__path__]
sys.modules["unsloth_zoo.loss_utils"] = StandIn("unsloth_zoo.loss_utils")  # patches of transformers
kernels = import_module("unsloth.kernels.cross_entropy_loss")


def _cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    normalizer: torch.Tensor | float | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """Logits (batch, length, C), and the mean alone; n_items is the normalizer, logit_scaling the scale. 0 turns off
    its options."""
    only("axis", axis, -1, logits.ndim - 1)
    only("reduction", reduction, "mean")
    only("ignore_index", ignore_index, -100)
    if target.is_floating_point():
        raise Unsupported("takes class indices only")
    if tuple(target.shape) != tuple(logits.shape[:-1]):
        raise ValueError(f"target of shape {tuple(target.shape)} for logits {tuple(logits.shape)}")
    loss: torch.Tensor = kernels.fast_cross_entropy_loss(
        logits.reshape(1, -1, logits.shape[-1]),
        target.reshape(1, -1),
        logit_softcapping=softcap or 0,
        logit_scaling=0 if scale == 1 else scale,
        n_items=normalizer,
    )
    return loss


cross_entropy = peer("unsloth", _cross_entropy, "unsloth", "triton")
