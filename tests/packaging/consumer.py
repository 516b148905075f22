"""A program as a user would write it; `test_consumer` checks its types against the installed wheel."""

from __future__ import annotations

from typing import Any

import numpy as np

import unixent
from unixent.protocol import Backend
from unixent_numpy import NumpyBackend


def perplexity(logits: np.ndarray[Any, np.dtype[np.float32]], target: list[int]) -> float:
    return float(np.exp(unixent.cross_entropy(logits, target, reduction="mean", label_smoothing=0.1)))


def accumulate(batches: list[tuple[Any, Any]]) -> float:
    terms: list[unixent.LossTerms] = [unixent.loss_terms(logits, target) for logits, target in batches]
    return float(sum(term.numerator for term in terms) / sum(term.denominator for term in terms))


def installed() -> list[str]:
    statuses: tuple[unixent.BackendStatus, ...] = unixent.backends()
    return [status.name for status in statuses if status.installed]


backend: Backend = NumpyBackend()
options = unixent.LossOptions(z_loss=1e-4)
loss = unixent.CrossEntropyLoss(unixent.ParallelConfig(), label_smoothing=0.1)
try:
    loss(np.zeros((2, 3)), np.array([0, 7]))
except unixent.TargetRangeError as error:
    index_error: IndexError = error
