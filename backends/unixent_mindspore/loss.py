"""The loss as a cell, with the constructor and the call of MindFormers' ``mindformers.core.CrossEntropyLoss``."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

import unixent
from unixent.options import DEFAULT_IGNORE_INDEX, OnEmpty, Reduction, Validate
from unixent_mindspore._groups import grid


class CrossEntropyLoss(nn.Cell):
    r"""`unixent.cross_entropy` as a cell: ``loss(logits, label, input_mask)``, eagerly and in compiled code.

    With the defaults it is the loss of ``mindformers.core.CrossEntropyLoss``, with m the mask and p the softmax:

    .. code-block:: text

        loss = sum_n m_n (-log p_{n, label_n}) / sum_n m_n          (0 where no position counts)

    in nats, as a float32 scalar whatever the dtype of logits (float64 for float64 logits). Beyond that it does what the
    documentation of the original promises and its code lacks: class weights, ignore_index, reduction, smoothing and
    probability targets. ``docs/mindformers.md`` lists the differences.

    Args:
        parallel_config: None, a `unixent.ParallelConfig`, or any object with ``data_parallel`` and ``model_parallel``.
        check_for_nan_in_loss_and_grad: log the loss and raise where it or its gradient is NaN or infinite. Costs a
            second pass, and has no effect in compiled code, where values cannot be read.
        calculate_per_token_loss: return the pair (numerator, denominator) instead of their quotient.
        weight: class weights (C,).
        axis, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, validate: as in
            `unixent.cross_entropy`.
        dtype: dtype of the result, by name; None for float32, or float64 for float64 logits.

    Inputs:
        - **logits** - (N, C), or any shape with the classes along ``axis``; float16, bfloat16, float32 or float64.
        - **label** - class indices (N,) of any integer dtype, or probabilities of the shape of logits.
        - **input_mask** - position weights (N,), bool, integer or floating; None for ones.

    Raises:
        UnixentError: as `unixent.cross_entropy`; in compiled code while it is being compiled.

    Example:
        >>> import mindspore as ms, numpy as np
        >>> from unixent_mindspore import CrossEntropyLoss
        >>> loss = CrossEntropyLoss(label_smoothing=0.1)
        >>> logits = ms.Tensor([[2.0, 0.0], [0.0, 1.0]], ms.float32)
        >>> label, mask = ms.Tensor([0, 0], ms.int32), ms.Tensor([1, 0], ms.float32)
        >>> print(loss(logits, label, mask).asnumpy().round(6))
        0.226928
        >>> step = ms.value_and_grad(loss)
        >>> print(step(logits, label, mask)[1].asnumpy().round(4).tolist())
        [[-0.06920000165700912, 0.06920000165700912], [0.0, 0.0]]
    """

    def __init__(
        self,
        parallel_config: Any = None,
        check_for_nan_in_loss_and_grad: bool = False,
        calculate_per_token_loss: bool = False,
        *,
        weight: Any = None,
        reduction: Reduction = "mean",
        axis: int = -1,
        ignore_index: int = DEFAULT_IGNORE_INDEX,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        on_empty: OnEmpty = "zero",
        dtype: Any = None,
        validate: Validate = "auto",
    ) -> None:
        super().__init__()
        # Validates the options, and finds the bad position when asked to check.
        self.parallel_config = None if parallel_config is None else grid(parallel_config)
        self.eager = unixent.CrossEntropyLoss(
            self.parallel_config,
            check_for_nan_in_loss_and_grad,
            calculate_per_token_loss,
            weight=weight,
            reduction=reduction,
            axis=axis,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            on_empty=on_empty,
            dtype=dtype,
            validate=validate,
        )
        self.check_for_nan_in_loss_and_grad = bool(check_for_nan_in_loss_and_grad)
        self.calculate_per_token_loss = bool(calculate_per_token_loss)
        self.weight = weight if weight is None or isinstance(weight, Tensor) else Tensor(np.asarray(weight, np.float32))
        options = self.eager.options
        self.reduction, self.axis, self.ignore_index = options.reduction, options.axis, options.ignore_index
        self.label_smoothing, self.z_loss, self.softcap = options.label_smoothing, options.z_loss, options.softcap
        self.on_empty, self.dtype, self.validate = options.on_empty, options.dtype, options.validate

    def construct(self, logits: Tensor, label: Tensor, input_mask: Tensor | None = None) -> Any:
        dtype = self.dtype
        if dtype is None:
            dtype = "float64" if logits.dtype == ms.float64 else "float32"
        if self.check_for_nan_in_loss_and_grad:  # @jit.cond: False
            self.eager(logits, label, input_mask)
        if self.calculate_per_token_loss:
            return unixent.loss_terms(
                logits,
                label,
                weight=self.weight,
                mask=input_mask,
                axis=self.axis,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                z_loss=self.z_loss,
                softcap=self.softcap,
                dtype=dtype,
                validate=self.validate,
                parallel=self.parallel_config,
                backend="mindspore",
            )
        return unixent.cross_entropy(
            logits,
            label,
            weight=self.weight,
            mask=input_mask,
            axis=self.axis,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            on_empty=self.on_empty,
            dtype=dtype,
            validate=self.validate,
            parallel=self.parallel_config,
            backend="mindspore",
        )

    def extend_repr(self) -> str:
        return repr(self.eager).partition("(")[2][:-1]
