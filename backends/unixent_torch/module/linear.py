"""The last linear layer and its loss as a torch module: a drop-in for `torch.nn.LinearCrossEntropyLoss`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unixent.arguments import LinearArguments
from unixent.dispatch import linear_loss, logits_loss
from unixent.errors import DTypeError, ShapeError
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions, OnEmpty, Reduction, Validate
from unixent_torch.module.base import LossModule, refuse_symbolic


def _only_holds_weight(classifier: nn.Module) -> bool:
    """Whether the logits of a module are those of its weight and bias, whatever else may be attached to it.

    An embedding is never called for them, nor is a module without a forward of its own.
    """
    if "forward" in vars(classifier):
        return False
    forward = type(classifier).forward
    if forward is nn.Embedding.forward or forward is nn.Module.forward:
        return True
    return forward is nn.Linear.forward and not (classifier._forward_hooks or classifier._forward_pre_hooks)


class LinearCrossEntropyLoss(LossModule):
    """The last linear layer of a classifier and its loss in one: `unixent.linear_cross_entropy` with its classifier.

    The constructor and the call are those of `torch.nn.LinearCrossEntropyLoss`, and the layer is the submodule
    ``linear`` as there, so that state dicts fit. The logits never exist as a whole, and every derivative and transform
    of torch goes through. As with torch's losses a mean over nothing is NaN, and under autocast half-precision hidden
    states give a float32 loss.

    Args:
        in_features: D, the size of a hidden state.
        num_classes: C, the classes that exist. A borrowed classifier may hold more where its vocabulary is padded to a
            round number: the rest gets probability 0 and gradient 0, whatever it holds.
        bias: whether the layer of its own has one.
        device, dtype: of the layer of its own.
        weight: class weights (C,); a buffer.
        classifier: a module whose ``weight`` (C, D) and ``bias``, if any, are used in place of a layer of its own: the
            `torch.nn.Embedding` that the weight is tied to, or a `torch.nn.Linear` that the model also calls. It is
            borrowed: parameters() and state_dict() leave it to its owner. A module with a ``forward`` of its own
            or with forward hooks (an adapter, say) is called, and its logits exist as a whole.
        reduction, ignore_index, label_smoothing, z_loss, scale, softcap, temperature, on_empty, validate: as in
            `unixent.cross_entropy`; ``ignore_index=None`` means the default.
        chunk: number of positions whose logits may exist at a time; None chooses.
        parallel_config: a `unixent.ParallelConfig` where positions or classes are split over processes; ``num_classes``
            counts the classes of this process then, which hold no padding, and ``weight`` is that of all of them.

    Shape:
        input P + (D,), target P of indices, or probabilities P + (C,). The result is in nats: 0-d, or P for
        ``reduction="none"``.

    Raises:
        ShapeError: the borrowed weight is not (num_classes, in_features), and not one of more classes either.
        UnixentError: as `unixent.linear_cross_entropy`; on construction for an option that is out of range.

    Example:
        >>> import torch
        >>> from unixent_torch import LinearCrossEntropyLoss
        >>> embedding = torch.nn.Embedding(10, 4)
        >>> loss = LinearCrossEntropyLoss(4, 10, classifier=embedding, label_smoothing=0.1)
        >>> loss
        LinearCrossEntropyLoss(in_features=4, num_classes=10, borrowed, label_smoothing=0.1)
        >>> tokens = torch.tensor([1, 2, 3])
        >>> loss(embedding(tokens), tokens).backward()
        >>> embedding.weight.grad.shape, list(loss.parameters())
        (torch.Size([10, 4]), [])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: Reduction = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        classifier: nn.Module | None = None,
        z_loss: float = 0.0,
        scale: float = 1.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        on_empty: OnEmpty = "nan",
        validate: Validate = "auto",
        chunk: int | None = None,
        parallel_config: Any = None,
    ) -> None:
        options = LossOptions(
            reduction=reduction,
            ignore_index=DEFAULT_IGNORE_INDEX if ignore_index is None else ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            scale=scale,
            softcap=softcap,
            temperature=temperature,
            on_empty=on_empty,
            validate=validate,
        )
        super().__init__(weight, options, parallel_config)
        self.in_features, self.num_classes, self.chunk = in_features, num_classes, chunk
        if classifier is None:
            self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        elif _only_holds_weight(classifier):
            rows, *features = classifier.weight.shape
            if features != [in_features] or not self._serves(rows):
                raise ShapeError(
                    f"classifier: expected a module with a weight of shape {(num_classes, in_features)}, or more rows "
                    f"where the vocabulary is padded; got {tuple(classifier.weight.shape)}"
                )
        # In a tuple, or it would become a submodule.
        self._borrowed = None if classifier is None else (classifier,)

    @property
    def classifier(self) -> nn.Module:
        """The module whose weight and bias make the logits: the layer of its own, or the borrowed one."""
        return self.linear if self._borrowed is None else self._borrowed[0]

    def _serves(self, rows: int) -> bool:
        """Whether a classifier of so many classes holds those that exist. A share of them has no padding to tell."""
        return rows == self.num_classes if self.parallel_config is not None else rows >= self.num_classes

    def _padding(self, rows: int) -> dict[str, Any]:
        """The option that tells which classes of so many exist, where not all do."""
        return {"num_classes": self.num_classes} if rows > self.num_classes else {}

    def forward(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, normalizer: Tensor | float | None = None
    ) -> Tensor:
        """The loss in nats.

        Args:
            input: hidden states.
            target: class indices or probabilities.
            mask: position weights P, as in `unixent.cross_entropy`.
            normalizer: replaces the denominator of the mean.
        """
        if not isinstance(input, Tensor):
            refuse_symbolic(input)
        classifier = self.classifier
        if not _only_holds_weight(classifier):
            logits = classifier(input)
            if not isinstance(logits, Tensor):
                raise DTypeError(f"classifier: expected a module that makes a tensor; got {type(logits).__name__}")
            if not logits.ndim or not self._serves(logits.shape[-1]):
                raise ShapeError(
                    f"classifier: expected a module that makes {self.num_classes} logits; "
                    f"got logits of shape {tuple(logits.shape)}"
                )
            options = self._options_for(logits, target, self._padding(logits.shape[-1]))
            called: Tensor = logits_loss(logits, self._common(target, mask, normalizer), options)
            return called
        linear = LinearArguments(input, classifier.weight, getattr(classifier, "bias", None), self.chunk)
        options = self._options_for(input, target, self._padding(classifier.weight.shape[0]))
        loss: Tensor = linear_loss(linear, self._common(target, mask, normalizer), options)
        return loss

    def extra_repr(self) -> str:
        first = [f"in_features={self.in_features}", f"num_classes={self.num_classes}"]
        first += [] if self._borrowed is None else ["borrowed"]
        return self._shown(first, [] if self.chunk is None else [f"chunk={self.chunk}"])
