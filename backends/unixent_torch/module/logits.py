"""The loss as a torch module: a drop-in for `torch.nn.CrossEntropyLoss`."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from torch import Tensor

from unixent.dispatch import logits_loss
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions, OnEmpty, Reduction, Validate
from unixent_torch.module.base import LossModule, Option, refuse_symbolic


class CrossEntropyLoss(LossModule):
    """`unixent.cross_entropy` where `torch.nn.CrossEntropyLoss` stood: the same constructor, the same call.

    As there, the classes lie along axis 1 of the input (axis 0 of a vector), a mean over nothing is NaN, and under
    autocast half-precision logits give a float32 loss. What differs is listed in ``docs/torch.md``: confident rows keep
    their relative accuracy, and an index outside [0, C) is an error or NaN, never undefined behaviour.

    Args:
        weight: class weights (C,); a buffer, so it moves with the module and is in its ``state_dict``.
        size_average, reduce: torch's deprecated pair; use ``reduction``.
        ignore_index, reduction, label_smoothing: as in `unixent.cross_entropy`.
        axis: the class axis; None for 1, or 0 where the input is a vector.
        z_loss, scale, softcap, temperature, num_classes, on_empty, dtype, validate: as in `unixent.cross_entropy`.
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

    dtype = Option()
    num_classes = Option()

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
        scale: float = 1.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        num_classes: int | None = None,
        on_empty: OnEmpty = "nan",
        dtype: Any = None,
        validate: Validate = "auto",
        parallel_config: Any = None,
    ) -> None:
        if size_average is not None or reduce is not None:
            reduction = _legacy_reduction(size_average, reduce)
        options = LossOptions(
            axis=1 if axis is None else axis,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            scale=scale,
            softcap=softcap,
            temperature=temperature,
            num_classes=num_classes,
            on_empty=on_empty,
            dtype=dtype,
            validate=validate,
        )
        super().__init__(weight, options, parallel_config)
        self.axis = axis

    def forward(
        self, input: Tensor, target: Tensor, mask: Tensor | None = None, normalizer: Tensor | float | None = None
    ) -> Tensor:
        """The loss in nats.

        Args:
            input: logits.
            target: class indices or probabilities.
            mask: position weights of the shape of the positions, as in `unixent.cross_entropy`.
            normalizer: replaces the denominator of the mean.
        """
        if not isinstance(input, Tensor):
            refuse_symbolic(input)
        first_axis = self.axis is None and (input.ndim if isinstance(input, Tensor) else np.ndim(input)) < 2
        options = self._options_for(input, target, {"axis": 0} if first_axis else {})
        loss: Tensor = logits_loss(input, self._common(target, mask, normalizer), options)
        return loss

    def extra_repr(self) -> str:
        return self._shown([] if self.axis is None else [f"axis={self.axis}"], [])


def _legacy_reduction(size_average: bool | None, reduce: bool | None) -> Reduction:
    """torch's deprecated pair of arguments as a reduction."""
    reduction: Reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    warnings.warn(
        f"size_average and reduce args will be deprecated, please use reduction={reduction!r} instead.", stacklevel=3
    )
    return reduction
