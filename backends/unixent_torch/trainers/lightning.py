"""Exact gradient accumulation for Lightning: every token of a step counts the same, whatever batch it is in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unixent.protocol import LossTerms


class ExactAccumulation:
    """A base class beside ``LightningModule``: ``training_step`` returns ``self.accumulate(unixent.loss_terms(...))``.

    .. code-block:: text

        gradient of a step = sum of the gradients of the numerators / sum of the denominators

    over the batches of ``accumulate_grad_batches`` and the processes of data parallelism. Lightning divides by the
    number of batches and processes instead, which weights the tokens of short batches more (issue 20350 of
    Lightning-AI/pytorch-lightning). The division comes before gradients are clipped. For automatic optimization with
    one optimizer; the loss that is returned is a sum, so that under float16 a scaler starts with a smaller scale.

    Example:
        >>> import torch, unixent
        >>> from unixent_torch.trainers.lightning import ExactAccumulation
        >>> class Model(ExactAccumulation):  # and lightning.LightningModule
        ...     def training_step(self, batch, batch_index):
        ...         inputs, target = batch
        ...         return self.accumulate(unixent.loss_terms(self.head(inputs), target))
    """

    _denominator: Tensor | None = None

    def accumulate(self, terms: LossTerms) -> Tensor:
        """What ``training_step`` returns for the terms of a batch."""
        counted: Any = terms.denominator.detach()
        self._denominator = counted if self._denominator is None else self._denominator + counted
        trainer: Any = self.trainer  # type: ignore[attr-defined]
        return terms.numerator * trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Divides the gradients, which data parallelism has averaged over the processes."""
        trainer: Any = self.trainer  # type: ignore[attr-defined]
        if self._denominator is not None:
            denominator = trainer.strategy.reduce(self._denominator, reduce_op="sum")
            factor = torch.where(denominator > 0, trainer.world_size / denominator, 0)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad *= factor
        self._denominator = None
