"""Puts the functions of this package in the place of a library's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from unixent.errors import OptionError

# By library: the modules that define what is replaced, and the names there; ours have no leading underscore.
_REPLACED: dict[str, dict[str, tuple[str, ...]]] = {
    "trl": {
        "trl.trainer.utils": (
            "_ChunkedLogProbFunction",
            "selective_log_softmax",
            "entropy_from_logits",
            "selective_log_softmax_and_entropy",
        )
    },
    "verl": {
        "verl.utils.torch_functional": (
            "logprobs_from_logits",
            "entropy_from_logits",
            "entropy_from_logits_with_chunking",
        ),
        "verl.utils.experimental.torch_functional": ("FusedLinearForPPO",),
    },
    "openrlhf": {"openrlhf.models.utils": ("log_probs_from_logits", "compute_entropy")},
    "megatron": {
        "megatron.core.tensor_parallel.cross_entropy": ("vocab_parallel_cross_entropy",),
        "megatron.core.fusions.fused_cross_entropy": ("fused_vocab_parallel_cross_entropy",),
    },
    "torchtitan": {"torchtitan.components.loss": ("cross_entropy_loss",)},
}


def patch(library: str) -> Callable[[], None]:
    """Replaces the losses and log-probabilities of a library by ours, in this process.

    Every module of the library that has been imported is searched for the originals; those that are imported later find
    ours. Call it once, before a trainer or a model is made. What other code has imported by name keeps the original.

    Args:
        library: "trl", "verl", "openrlhf", "megatron" or "torchtitan".

    Returns:
        A function without arguments that puts the originals back.

    Raises:
        OptionError: another library, or a version of it that lacks what is replaced.
        ImportError: the library is not installed.

    Example:
        >>> from unixent_torch.trainers import patch
        >>> undo = patch("trl")  # doctest: +SKIP
    """
    if library not in _REPLACED:
        raise OptionError(f"library: expected one of {', '.join(map(repr, _REPLACED))}; got {library!r}")
    ours = import_module(f"unixent_torch.trainers.{library}")
    pairs: list[tuple[Any, Any]] = []
    for home, names in _REPLACED[library].items():
        module = import_module(home)
        missing = [name for name in names if not hasattr(module, name)]
        if missing:
            raise OptionError(f"library: expected a version of {library} with {home}.{missing[0]}, which is missing")
        pairs += [(getattr(module, name), getattr(ours, name.lstrip("_"))) for name in names]
    _exchange(library, pairs)
    return lambda: _exchange(library, [(new, old) for old, new in pairs])


def _exchange(library: str, pairs: list[tuple[Any, Any]]) -> None:
    """In every imported module of the library, the second of each pair under the names of the first."""
    for module_name, module in list(sys.modules.items()):
        if module_name == library or module_name.startswith(f"{library}."):
            for name, value in list(vars(module).items()):
                for old, new in pairs:
                    if value is old:
                        setattr(module, name, new)
