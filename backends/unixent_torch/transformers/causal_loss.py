"""The loss of a causal language model, with the call of transformers' loss functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unixent.functions import cross_entropy
from unixent.options import DEFAULT_IGNORE_INDEX
from unixent_torch.transformers.deferred import DeferredLogits, loss_dtype


class CausalLMLoss:
    """What ``model.loss_function`` is called with: logits, labels that are shifted here, and a count of tokens.

    .. code-block:: text

        loss = sum over n of loss(logits_n, labels_{n+1}) / num_items_in_batch, or / the number of labels that count

    Args:
        options: those of `unixent.cross_entropy`, less reduction and normalizer.

    Returns:
        The mean in nats, 0-d, float32 (float64 for logits of float64).
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | float | None = None,
        ignore_index: int = DEFAULT_IGNORE_INDEX,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        arguments = (labels, num_items_in_batch, ignore_index, shift_labels)
        # Deferred logits came from outside the compiled program, and their loss is there, too.
        return self._eager(logits, *arguments) if isinstance(logits, DeferredLogits) else self._of(logits, *arguments)

    def _of(
        self,
        logits: Tensor,
        labels: Tensor,
        num_items_in_batch: Tensor | float | None,
        ignore_index: int,
        shift_labels: Tensor | None,
    ) -> Tensor:
        if shift_labels is None:
            shift_labels = functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        target = shift_labels.reshape(logits.shape[:-1]).to(logits.device)
        options: dict[str, Any] = {
            "dtype": loss_dtype(logits),
            "ignore_index": ignore_index,
            "normalizer": _on(num_items_in_batch, logits),
        }
        options |= self.options
        if isinstance(logits, DeferredLogits):
            if logits.values is None:
                return logits.loss(target, **options)
            logits = logits.values
        options.pop("chunk", None)  # of the fused form alone
        return cross_entropy(logits, target, **options)

    @torch.compiler.disable
    def _eager(self, *arguments: Any) -> Tensor:
        return self._of(*arguments)

    def __repr__(self) -> str:
        return f"CausalLMLoss({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


def _on(count: Tensor | float | None, logits: Tensor) -> Tensor | float | None:
    """A count as a normalizer, on the device of logits."""
    if count is None:
        return None
    if isinstance(count, Tensor):
        return count.detach().to(logits.device, torch.float32).reshape(())
    return float(count)
