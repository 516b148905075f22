"""The module form: a drop-in for `torch.nn.CrossEntropyLoss`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import unixent
from unixent.options import DEFAULT_IGNORE_INDEX, OnEmpty, Reduction, Validate

_HALF = (torch.float16, torch.bfloat16)


class CrossEntropyLoss(nn.Module):
    """`unixent.cross_entropy` where `torch.nn.CrossEntropyLoss` stood: the same constructor, the same call.

    As there, the classes lie along axis 1 of the input (axis 0 of a vector), a mean over nothing is NaN, and under
    autocast half-precision logits give a float32 loss. What differs is listed in ``docs/torch.md``: confident rows keep
    their relative accuracy, and an index outside [0, C) is an error or NaN, never undefined behaviour.

    Args:
        weight: class weights (C,); a buffer, so it moves with the module and is in its ``state_dict``.
        size_average, reduce: torch's deprecated pair; use ``reduction``.
        ignore_index, reduction, label_smoothing: as in `unixent.cross_entropy`.
        axis: the class axis; None for 1, or 0 where the input is a vector.
        z_loss, softcap, on_empty, dtype, validate: as in `unixent.cross_entropy`.
        parallel_config: a `unixent.ParallelConfig` where positions or classes are split over processes; ``weight`` is
            that of all classes all the same.

    Shape:
        input (N, C, ...) or (C,), target (N, ...) or () of indices, or probabilities of the input's shape. The result
        is in nats: 0-d, or of the shape of the positions for ``reduction="none"``.

    Raises:
        UnixentError: as `unixent.cross_entropy`; on construction for an option that is out of range.

    Example:
        >>> import torch
        >>> from unixent_torch import CrossEntropyLoss
        >>> loss = CrossEntropyLoss(label_smoothing=0.1, z_loss=1e-4)
        >>> loss
        CrossEntropyLoss(label_smoothing=0.1, z_loss=0.0001)
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> value = loss(logits, torch.tensor([0, 0]))
        >>> value.backward()
        >>> print(f"{value.item():.6f}")
        0.745404
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = DEFAULT_IGNORE_INDEX,
        reduce: bool | None = None,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
        *,
        axis: int | None = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        on_empty: OnEmpty = "nan",
        dtype: Any = None,
        validate: Validate = "auto",
        parallel_config: Any = None,
    ) -> None:
        super().__init__()
        if size_average is not None or reduce is not None:
            reduction = nn._reduction.legacy_get_string(size_average, reduce)
        self.register_buffer("weight", weight)
        self.axis = axis
        options = unixent.LossOptions(
            axis=1 if axis is None else axis,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            on_empty=on_empty,
            dtype=dtype,
            validate=validate,
        )
        self.reduction = options.reduction
        self.ignore_index = options.ignore_index
        self.label_smoothing = options.label_smoothing
        self.z_loss = options.z_loss
        self.softcap = options.softcap
        self.on_empty = options.on_empty
        self.dtype = options.dtype
        self.validate = options.validate
        self.parallel_config = None if parallel_config is None else unixent.ParallelConfig.of(parallel_config)
        unixent.get_backend("torch")  # so that nothing is looked up anew after a compiled first call

    def forward(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, *, normalizer: Tensor | float | None = None
    ) -> Tensor:
        """The loss in nats.

        Args:
            input: logits.
            target: class indices or probabilities.
            mask: position weights of the shape of the positions, as in `unixent.cross_entropy`.
            normalizer: replaces the denominator of the mean.
        """
        axis, dtype, ignore_index = self.axis, self.dtype, self.ignore_index
        if axis is None:
            axis = 1 if input.ndim > 1 else 0
        if dtype is None and input.dtype in _HALF and torch.is_autocast_enabled(input.device.type):
            dtype = "float32"
        if target.is_floating_point() and ignore_index < 0:
            ignore_index = DEFAULT_IGNORE_INDEX  # as torch: it has nothing to say there
        loss: Tensor = unixent.cross_entropy(
            input,
            target,
            weight=self.weight,
            mask=mask,
            axis=axis,
            reduction=self.reduction,
            ignore_index=ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            normalizer=normalizer,
            on_empty=self.on_empty,
            dtype=dtype,
            validate=self.validate,
            parallel=self.parallel_config,
            backend="torch",
        )
        return loss

    def extra_repr(self) -> str:
        defaults = {
            "ignore_index": DEFAULT_IGNORE_INDEX,
            "reduction": "mean",
            "label_smoothing": 0.0,
            "axis": None,
            "z_loss": 0.0,
            "softcap": None,
            "on_empty": "nan",
            "dtype": None,
            "validate": "auto",
        }
        shown = [f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value]
        if self.weight is not None:
            shown.insert(0, f"weight=({self.weight.numel()},)")
        if self.parallel_config is not None:
            shown.append(f"over {self.parallel_config.degree} processes")
        return ", ".join(shown)
