"""The loss as a cell, with the constructor and the call of MindFormers' ``mindformers.core.CrossEntropyLoss``."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mindspore as ms
from mindspore import Tensor, nn

import unixent
from unixent.arguments import CommonArguments, as_backend_array
from unixent.dispatch import logits_loss
from unixent.keywords import LossKeywords, shows_keywords
from unixent.registry import get_backend
from unixent_mindspore.collectives import grid

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack


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
        axis, reduction, ignore_index, label_smoothing, z_loss, scale, softcap, temperature, on_empty, validate: as in
            `unixent.cross_entropy`; with ``calculate_per_token_loss``, ``reduction`` and ``on_empty`` have no effect
            and are refused.
        dtype: dtype of the result, by name; None for float32, or float64 for float64 logits.

    Inputs:
        - **logits** - (N, C), or any shape with the classes along ``axis``; float16, bfloat16, float32 or float64.
        - **label** - class indices (N,) of any integer dtype, or probabilities of the shape of logits.
        - **input_mask** - position weights (N,), bool, integer or floating; None for ones.
        - **normalizer** - a float or a 0-d tensor: the denominator of the mean (the global token count of a
          gradient-accumulation step, say); None for the sum of the position weights.

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

    @shows_keywords(LossKeywords)
    def __init__(
        self,
        parallel_config: Any = None,
        check_for_nan_in_loss_and_grad: bool = False,
        calculate_per_token_loss: bool = False,
        *,
        weight: Any = None,
        **options: Unpack[LossKeywords],
    ) -> None:
        super().__init__()
        self.parallel_config = None if parallel_config is None else grid(parallel_config)
        # Checks the arguments, and names the first bad position when asked to look for one.
        self.checked = unixent.CrossEntropyLoss(
            self.parallel_config, check_for_nan_in_loss_and_grad, calculate_per_token_loss, weight=weight, **options
        )
        self.check_for_nan_in_loss_and_grad = bool(check_for_nan_in_loss_and_grad)
        self.calculate_per_token_loss = bool(calculate_per_token_loss)
        self.weight = weight
        if weight is not None:
            self.weight = as_backend_array(get_backend("mindspore"), "weight", weight, None)
        evaluated = self.checked.options
        if self.calculate_per_token_loss:
            evaluated = replace(evaluated, reduction="sum")
        self.options = replace(evaluated, dtype=evaluated.dtype or "float32")
        self.float64_options = replace(evaluated, dtype=evaluated.dtype or "float64")

    def construct(self, logits: Tensor, label: Tensor, input_mask: Tensor | None = None, normalizer: Any = None) -> Any:
        if self.check_for_nan_in_loss_and_grad:  # @jit.cond: False
            self.checked(logits, label, input_mask, normalizer=normalizer)
        options = self.options
        if isinstance(logits, Tensor) and logits.dtype == ms.float64:
            options = self.float64_options
        common = CommonArguments(
            label,
            self.weight,
            input_mask,
            normalizer,
            self.parallel_config,
            self.calculate_per_token_loss,
            "mindspore",
        )
        return logits_loss(logits, common, options)

    def extend_repr(self) -> str:
        return repr(self.checked).partition("(")[2][:-1]
