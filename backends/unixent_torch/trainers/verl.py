"""verl's functions of log-probability and entropy, from logits and from hidden states: ``patch("verl")``."""

from __future__ import annotations

import torch
from torch import Tensor

from unixent.positions import linear_position_stats
from unixent_torch.trainers.log_probs import entropy_of_logits, log_probs_of, wide_dtype


def logprobs_from_logits(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    """log softmax(logits) at ``labels``, as ``verl.utils.torch_functional.logprobs_from_logits``.

    Args:
        logits: P + (C,), floating. They are never written to.
        labels: P, class indices; -100 gives 0.
        inplace_backward: not used.

    Returns:
        P, in nats, float32 (float64 for logits of float64).

    Raises:
        TargetRangeError: a label that is no class, where it can be read.

    Example:
        >>> import torch
        >>> from unixent_torch.trainers.verl import logprobs_from_logits
        >>> logprobs_from_logits(torch.tensor([[0.0, 0.0], [20.0, 0.0]]), torch.tensor([1, 0]))
        tensor([-6.9315e-01, -2.0612e-09])
    """
    return log_probs_of(logits, labels)[0]


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, as ``verl.utils.torch_functional.entropy_from_logits``, float32 at least."""
    return entropy_of_logits(logits)


def entropy_from_logits_with_chunking(logits: Tensor, chunk_size: int = 2048) -> Tensor:
    """The same; ``chunk_size`` is not used."""
    return entropy_of_logits(logits)


class FusedLinearForPPO(torch.nn.Module):
    """Log-probability and entropy of a head, as ``verl.utils.experimental.torch_functional.FusedLinearForPPO``.

    Args:
        chunk_size: number of positions whose logits exist at a time.
        impl_backend: not used.

    Example:
        >>> import torch
        >>> from unixent_torch.trainers.verl import FusedLinearForPPO
        >>> log_probs, entropy = FusedLinearForPPO()(torch.zeros(2, 4), torch.zeros(8, 4), torch.tensor([0, 7]))
        >>> log_probs, entropy
        (tensor([-2.0794, -2.0794]), tensor([2.0794, 2.0794]))
    """

    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.impl_backend = impl_backend

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """hidden_states P + (D,), vocab_weights (C, D), input_ids P: both P, in nats, float32 at least."""
        stats = linear_position_stats(
            hidden_states,
            vocab_weights,
            input_ids,
            outputs=("log_prob", "entropy"),
            temperature=temperature,
            chunk=self.chunk_size,
            dtype=wide_dtype(hidden_states),
        )
        return stats.log_prob, stats.entropy
