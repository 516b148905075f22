"""The fused linear form as a module: a drop-in for `torch.nn.LinearCrossEntropyLoss`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import unixent
from unixent.options import DEFAULT_IGNORE_INDEX, OnEmpty, Reduction, Validate


class LinearCrossEntropyLoss(nn.Module):
    """The last linear layer of a classifier and its loss in one: `unixent.linear_cross_entropy` with its classifier.

    The constructor and the call are those of `torch.nn.LinearCrossEntropyLoss`, and the layer is the submodule
    ``linear`` as there, so that state dicts fit. The logits never exist as a whole, and every derivative and transform
    of torch goes through. As with torch's losses a mean over nothing is NaN, and under autocast half-precision hidden
    states give a float32 loss.

    Args:
        in_features: D, the size of a hidden state.
        num_classes: C.
        bias: whether the layer of its own has one.
        device, dtype: of the layer of its own.
        weight: class weights (C,); a buffer.
        classifier: a module whose ``weight`` (C, D) and ``bias``, if any, are used in place of a layer of its own: the
            `torch.nn.Embedding` that the weight is tied to, or a `torch.nn.Linear` that the model also calls. It is
            borrowed: parameters() and state_dict() leave it to its owner.
        reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, validate: as in `unixent.cross_entropy`;
            ``ignore_index=None`` means the default.
        chunk: number of positions whose logits may exist at a time; None chooses.
        parallel_config: a `unixent.ParallelConfig` where positions or classes are split over processes; ``num_classes``
            counts the classes of this process then, and ``weight`` is that of all of them.

    Shape:
        input P + (D,), target P of indices, or probabilities P + (C,). The result is in nats: 0-d, or P for
        ``reduction="none"``.

    Raises:
        ShapeError: the borrowed weight is not (num_classes, in_features).
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

    weight: Tensor | None

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
        softcap: float | None = None,
        on_empty: OnEmpty = "nan",
        validate: Validate = "auto",
        chunk: int | None = None,
        parallel_config: Any = None,
    ) -> None:
        super().__init__()
        self.in_features, self.num_classes = in_features, num_classes
        self.register_buffer("weight", weight)
        if classifier is None:
            self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        elif tuple(classifier.weight.shape) != (num_classes, in_features):
            raise unixent.ShapeError(
                f"classifier: expected a module with a weight of shape {(num_classes, in_features)}; "
                f"got {tuple(classifier.weight.shape)}"
            )
        # In a tuple, or it would become a submodule.
        self._borrowed = None if classifier is None else (classifier,)
        options = unixent.LossOptions(
            axis=-1,
            reduction=reduction,
            ignore_index=DEFAULT_IGNORE_INDEX if ignore_index is None else ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            on_empty=on_empty,
            dtype=None,
            validate=validate,
        )
        self.reduction = options.reduction
        self.ignore_index = options.ignore_index
        self.label_smoothing = options.label_smoothing
        self.z_loss = options.z_loss
        self.softcap = options.softcap
        self.on_empty = options.on_empty
        self.validate = options.validate
        self.chunk = chunk
        self.parallel_config = None if parallel_config is None else unixent.ParallelConfig.of(parallel_config)
        unixent.get_backend("torch")  # so that nothing is looked up anew after a compiled first call

    @property
    def classifier(self) -> nn.Module:
        """The module whose weight and bias make the logits: the layer of its own, or the borrowed one."""
        return self.linear if self._borrowed is None else self._borrowed[0]

    def forward(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, *, normalizer: Tensor | float | None = None
    ) -> Tensor:
        """The loss in nats.

        Args:
            input: hidden states.
            target: class indices or probabilities.
            mask: position weights P, as in `unixent.cross_entropy`.
            normalizer: replaces the denominator of the mean.
        """
        classifier = self.classifier
        half = input.dtype in (torch.float16, torch.bfloat16)
        loss: Tensor = unixent.linear_cross_entropy(
            input,
            classifier.weight,
            target,
            bias=getattr(classifier, "bias", None),
            weight=self.weight,
            mask=mask,
            reduction=self.reduction,
            ignore_index=DEFAULT_IGNORE_INDEX if target.is_floating_point() else self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            normalizer=normalizer,
            on_empty=self.on_empty,
            dtype="float32" if half and torch.is_autocast_enabled(input.device.type) else None,
            validate=self.validate,
            chunk=self.chunk,
            parallel=self.parallel_config,
            backend="torch",
        )
        return loss

    def extra_repr(self) -> str:
        defaults = {
            "reduction": "mean",
            "ignore_index": DEFAULT_IGNORE_INDEX,
            "label_smoothing": 0.0,
            "z_loss": 0.0,
            "softcap": None,
            "on_empty": "nan",
            "validate": "auto",
            "chunk": None,
        }
        shown = [f"in_features={self.in_features}", f"num_classes={self.num_classes}"]
        if self._borrowed is not None:
            shown.append("borrowed")
        if self.weight is not None:
            shown.append(f"weight=({self.weight.numel()},)")
        shown += [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        if self.parallel_config is not None:
            shown.append(f"over {self.parallel_config.degree} processes")
        return ", ".join(shown)
