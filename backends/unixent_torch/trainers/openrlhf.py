"""OpenRLHF's functions of log-probability and entropy: ``patch("openrlhf")``."""

from __future__ import annotations

from torch import Tensor

from unixent_torch.trainers.log_probs import entropy_of_logits, log_probs_of


def log_probs_from_logits(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at ``labels``, as ``openrlhf.models.utils.log_probs_from_logits``.

    Args:
        logits: P + (C,), floating. They are never written to, where OpenRLHF divides them by the temperature in place.
        labels: P, class indices; -100 gives 0.
        temperature: > 0.

    Returns:
        P, in nats, float32 (float64 for logits of float64).

    Raises:
        OptionError: a temperature that is not positive.
        TargetRangeError: a label that is no class, where it can be read.

    Example:
        >>> import torch
        >>> from unixent_torch.trainers.openrlhf import log_probs_from_logits
        >>> log_probs_from_logits(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), temperature=0.1)
        tensor([-2.0612e-09])
    """
    return log_probs_of(logits, labels, temperature)[0]


def compute_entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, as ``openrlhf.models.utils.compute_entropy``, float32 at least."""
    return entropy_of_logits(logits)
