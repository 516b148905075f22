"""A training step as a PyTorch user would write it: tensors in, tensors out, to type checkers too."""

from __future__ import annotations

import torch

import unixent


def training_loss(logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return unixent.cross_entropy(logits, target, mask=mask, label_smoothing=0.1, reduction="sum", backend="torch")


def fused(hidden: torch.Tensor, classifier: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return unixent.linear_cross_entropy(hidden, classifier, target)


def gradients(logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    loss, grad = unixent.value_and_grad(logits, probabilities)
    _, (for_logits, for_target) = unixent.value_and_grad(logits, probabilities, wrt=("logits", "target"))
    total: torch.Tensor = loss + grad.sum() + for_logits.sum() + for_target.sum()
    return total


def module(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return unixent.CrossEntropyLoss(z_loss=1e-4)(logits, target)


def terms(logits: torch.Tensor, target: torch.Tensor) -> unixent.LossTerms:
    return unixent.CrossEntropyLoss(calculate_per_token_loss=True)(logits, target)
