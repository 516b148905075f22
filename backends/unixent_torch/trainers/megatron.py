"""Megatron's cross-entropy of logits whose classes are split over a tensor parallel group: ``patch("megatron")``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch.distributed as dist
from torch import Tensor

from unixent.functions import cross_entropy
from unixent.options import ParallelConfig
from unixent_torch.trainers.log_probs import wide_dtype


def vocab_parallel_cross_entropy(
    vocab_parallel_logits: Tensor, target: Tensor, label_smoothing: float = 0.0, tp_group: Any = None
) -> Tensor:
    """The loss of each token, as ``megatron.core.tensor_parallel.vocab_parallel_cross_entropy``.

    .. code-block:: text

        loss = (1 - a) L_y + a / (C - 1) sum over c != y of L_c        L_c = -log p_c, C classes over all of tp_group

    Args:
        vocab_parallel_logits: [s, b, v/tp], the classes of this process. They are never written to.
        target: [s, b], indices of the whole vocabulary, the same on each process of the group; -100 gives 0.
        label_smoothing: a in [0, 1 - 1/C]: the probability of all classes but the target.
        tp_group: a ProcessGroup; None for Megatron's own, by ``megatron.core.parallel_state``.

    Returns:
        [s, b], in nats, float32 (float64 for logits of float64), the same on each process of the group.

    Raises:
        OptionError: a ``label_smoothing`` out of range.
        TargetRangeError: a target that is no class, where it can be read; on every process.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from unixent_torch.trainers.megatron import vocab_parallel_cross_entropy
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> target = torch.tensor([[0], [3]])
        >>> vocab_parallel_cross_entropy(torch.zeros(2, 1, 4), target, tp_group=dist.group.WORLD).flatten()
        tensor([1.3863, 1.3863])
        >>> dist.destroy_process_group()
    """
    if tp_group is None:
        tp_group = import_module("megatron.core.parallel_state").get_tensor_model_parallel_group()
    size = dist.get_world_size(tp_group)
    if label_smoothing:
        # Megatron spreads the smoothing over the classes but the target, unixent over all.
        classes = vocab_parallel_logits.shape[-1] * size
        label_smoothing *= classes / (classes - 1)
    return cross_entropy(
        vocab_parallel_logits,
        target,
        reduction="none",
        label_smoothing=label_smoothing,
        dtype=wide_dtype(vocab_parallel_logits),
        parallel=ParallelConfig(model_parallel=size, model_group=tp_group) if size > 1 else None,
    )


def fused_vocab_parallel_cross_entropy(vocab_parallel_logits: Tensor, target: Tensor, tp_group: Any) -> Tensor:
    """The same without smoothing, as ``megatron.core.fusions.fused_cross_entropy`` has it."""
    return vocab_parallel_cross_entropy(vocab_parallel_logits, target, 0.0, tp_group)
