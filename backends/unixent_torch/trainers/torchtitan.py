"""torchtitan's cross-entropy, the ``fn`` of its ``CrossEntropyLoss``: ``patch("torchtitan")``."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from unixent.functions import cross_entropy
from unixent.options import ParallelConfig
from unixent_torch.trainers.log_probs import wide_dtype


def cross_entropy_loss(pred: Tensor, labels: Tensor, *, global_vocab_size: int | None = None) -> Tensor:
    """The sum over tokens, as ``torchtitan.components.loss.cross_entropy_loss``: ``CrossEntropyLoss`` divides it.

    Args:
        pred: P + (C,), a tensor or a DTensor. Under torchtitan's backend ``spmd_types`` a plain tensor holds this
            process's classes: those of the axis "tp" of the current mesh are split.
        labels: P, indices of the whole vocabulary; -100 is ignored.
        global_vocab_size: not used: the shards say how many classes there are.

    Returns:
        0-d, in nats, float32 (float64 for pred of float64); a DTensor where labels are one.

    Raises:
        TargetRangeError: a label that is no class, where it can be read.

    Example:
        >>> import torch
        >>> from unixent_torch.trainers.torchtitan import cross_entropy_loss
        >>> cross_entropy_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 3, -100]]))
        tensor(2.7726)
    """
    parallel = None if isinstance(pred, DTensor) else _tensor_parallel()
    loss = cross_entropy(pred, labels, reduction="sum", dtype=wide_dtype(pred), parallel=parallel)
    return loss.to_local() if isinstance(loss, DTensor) and not isinstance(labels, DTensor) else loss


def _tensor_parallel() -> ParallelConfig | None:
    """The split of the classes of plain tensors, which torchtitan's backend ``spmd_types`` has in its current mesh."""
    spmd: Any = sys.modules.get("torchtitan.distributed.spmd_types")
    size = 1 if spmd is None else spmd.spmd_mesh_size("tp")
    if size == 1:
        return None
    return ParallelConfig(model_parallel=size, model_group=spmd.current_spmd_mesh().get_group("tp"))
