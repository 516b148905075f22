"""TRL's functions of log-probability and entropy, and the head of its trainers: ``patch("trl")`` puts them there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unixent.errors import BackendError
from unixent.options import DEFAULT_IGNORE_INDEX
from unixent.positions import linear_position_stats, position_stats
from unixent_torch.trainers.log_probs import entropy_of_logits, log_probs_of, wide_dtype

# What TRL calls an output of `linear_position_stats`, in the order in which it is returned.
_OUTPUTS = {"entropy": "entropy", "log_sum_sq_probs": "log_sum_sq", "mean_logits": "mean_logit", "is_top1": "correct"}


def selective_log_softmax(
    logits: Tensor, index: Tensor, temperature: float = 1.0, row_mask: Tensor | None = None
) -> Tensor:
    """log softmax(logits / temperature) at ``index``, as ``trl.trainer.utils.selective_log_softmax``.

    Args:
        logits: P + (C,), floating.
        index: P, or P + (K,) for K log-probabilities of each position. -100 gives 0.
        temperature: > 0.
        row_mask: of the shape of index; 0 gives 0.

    Returns:
        Log-probabilities in nats, of the shape of index, float32 (float64 for logits of float64).

    Raises:
        OptionError: a temperature that is not positive.
        TargetRangeError: an index that is no class, where it can be read.

    Example:
        >>> import torch
        >>> from unixent_torch.trainers.trl import selective_log_softmax
        >>> selective_log_softmax(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))  # TRL: 0
        tensor([-2.0612e-09])
    """
    if index.ndim == logits.ndim - 1:
        return log_probs_of(logits, index, temperature, row_mask)[0]
    if row_mask is not None:
        index = index.masked_fill(row_mask == 0, DEFAULT_IGNORE_INDEX)
    stats = position_stats(
        logits, outputs="selected_log_prob", selected=index, temperature=temperature, dtype=wide_dtype(logits)
    )
    return stats.selected_log_prob


def entropy_from_logits(logits: Tensor, chunk_size: int = 128) -> Tensor:
    """Entropy of softmax(logits) in nats, as ``trl.trainer.utils.entropy_from_logits``; ``chunk_size`` is not used.

    Example:
        >>> import torch
        >>> from unixent_torch.trainers.trl import entropy_from_logits
        >>> entropy_from_logits(torch.tensor([[0.0, 0.0, -torch.inf]]))  # TRL: nan
        tensor([0.6931])
    """
    return entropy_of_logits(logits)


def selective_log_softmax_and_entropy(
    logits: Tensor,
    index: Tensor,
    entropy_requires_grad: bool = True,
    temperature: float = 1.0,
    row_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Both of ``index`` P in one pass, as ``trl.trainer.utils.selective_log_softmax_and_entropy``."""
    log_prob, entropy = log_probs_of(logits, index, temperature, row_mask, entropy=True)
    assert entropy is not None
    return log_prob, entropy if entropy_requires_grad else entropy.detach()


class ChunkedLogProbFunction:
    """What ``add_fused_lm_head`` of TRL computes its head with; SFT, GRPO, DPO, KTO and RLOO go through it."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: Sequence[str] = tuple(_OUTPUTS),
    ) -> tuple[Tensor | None, ...]:
        """Statistics of ``hidden @ weight.T + bias``, in nats; ``chunk_size`` is not used.

        Args:
            hidden: (N, D).
            weight: (C, D).
            bias: (C,), or None.
            targets: (N,), class indices.
            temperature, final_logit_softcapping, logit_scale: as `unixent.linear_position_stats` has temperature,
                softcap and scale.
            outputs: of "entropy", "log_sum_sq_probs", "mean_logits" and "is_top1".

        Returns:
            log_probs, entropy, log_sum_sq_probs, mean_logits and is_top1, each (N,), float32 at least, or None where
            it is not asked for. The first two have a gradient.

        Raises:
            BackendError: a weight that ZeRO-3 shards: its backward pass would find it gone.
        """
        if hasattr(weight, "ds_id"):
            raise BackendError("weight: expected a head whose weight is whole; got one that ZeRO-3 shards")
        if not torch.is_autocast_enabled(hidden.device.type):
            weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        stats = linear_position_stats(
            hidden,
            weight,
            targets,
            bias=bias,
            outputs=("log_prob", *(_OUTPUTS[name] for name in outputs if name in _OUTPUTS)),
            temperature=temperature,
            softcap=final_logit_softcapping,
            scale=logit_scale,
            dtype=wide_dtype(hidden),
        )
        return (stats.log_prob, *(getattr(stats, name) for name in _OUTPUTS.values()))
