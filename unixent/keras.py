"""This loss for Keras 3, on its backends torch and JAX."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend import get_keras_mask  # what a custom loss has no public way to ask

from unixent.functions import cross_entropy
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions, Reduction

_OPTIONS = ("ignore_index", "label_smoothing", "z_loss", "scale", "softcap", "temperature", "num_classes")
_REDUCTIONS: dict[str | None, Reduction] = {
    "sum": "sum",
    "mean": "mean",
    "sum_over_batch_size": "mean",
    "mean_with_sample_weight": "mean",
    "none": "none",
    None: "none",
}


@keras.saving.register_keras_serializable("unixent")
class CrossEntropy(keras.losses.Loss):
    """Cross-entropy of logits, for ``model.compile(loss=CrossEntropy())`` and for loops of one's own.

    .. code-block:: text

        "sum_over_batch_size"      sum of s_n m_n l_n / sum of m_n          s_n: sample_weight, m_n: Keras mask, and 0
        "mean_with_sample_weight"  sum of s_n m_n l_n / sum of s_n m_n           where the target is ignored

    A position of weight 0 adds nothing, whatever its logits hold; a mean over nothing is 0. Logits in half precision
    are taken as they are, and the loss is computed in float32, where Keras converts all logits first.

    Args:
        reduction: "sum_over_batch_size" (or "mean"), "mean_with_sample_weight", "sum", or None for each position's.
        name: of the loss in logs.
        weight: of each class (C,), None for 1.
        options: label_smoothing, z_loss, scale, softcap, temperature, num_classes and ignore_index, as in
            `unixent.cross_entropy`.

    Raises:
        TypeError: another option. Predictions are logits, always, and the loss is float32.
        OptionError: an option with a wrong value.
        UnixentError: when it is called, as `unixent.cross_entropy`.

    Example:
        >>> import numpy as np
        >>> from unixent.keras import CrossEntropy
        >>> loss = CrossEntropy("sum")
        >>> round(float(loss(np.array([0, 1]), np.zeros((2, 4), np.float32), sample_weight=np.array([1, 0]))), 6)
        1.386294
    """

    def __init__(
        self,
        reduction: str | None = "sum_over_batch_size",
        name: str = "cross_entropy",
        *,
        weight: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if unknown := sorted(set(options) - set(_OPTIONS)):
            raise TypeError(f"{', '.join(unknown)}: expected options of {', '.join(_OPTIONS)}, or weight")
        LossOptions(**options)
        self.weight = None if weight is None else np.asarray(ops.convert_to_numpy(weight), np.float32)
        self.options = options

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The loss in nats, float32.

        Args:
            y_true: class indices P, or P + (1,), of any dtype; or probabilities of the shape of y_pred.
            y_pred: logits P + (C,).
            sample_weight: P, or the first axes of it.
        """
        mask = get_keras_mask(y_pred)
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if y_true.ndim == y_pred.ndim and y_true.shape[-1] == 1 != y_pred.shape[-1]:
            y_true = ops.squeeze(y_true, -1)
        active_weight = None if mask is None else _as_weight(mask, y_pred)
        if y_true.ndim < y_pred.ndim:
            y_true = ops.cast(y_true, "int32")
            known = ops.cast(y_true != self.options.get("ignore_index", DEFAULT_IGNORE_INDEX), "float32")
            active_weight = known if active_weight is None else active_weight * known
        normalizer = None
        if self.reduction in ("sum_over_batch_size", "mean"):
            normalizer = float(math.prod(y_pred.shape[:-1])) if active_weight is None else ops.sum(active_weight)
        weight = active_weight
        if sample_weight is not None:
            sample_weight = _as_weight(sample_weight, y_pred)
            weight = sample_weight if active_weight is None else active_weight * sample_weight
        return cross_entropy(
            y_pred,
            y_true,
            weight=self.weight,
            mask=weight,
            normalizer=normalizer,
            reduction=_REDUCTIONS[self.reduction],
            dtype="float32",
            **self.options,
        )

    def get_config(self) -> dict[str, Any]:
        """What a saved model remembers."""
        classes = {} if self.weight is None else {"weight": self.weight.tolist()}
        return {"name": self.name, "reduction": self.reduction, **classes, **self.options}


def _as_weight(weight: Any, logits: Any) -> Any:
    """Weights of positions with the axes of logits but the last, in float32."""
    weight = ops.cast(ops.convert_to_tensor(weight), "float32")
    positions = logits.ndim - 1
    if weight.ndim == positions + 1 and weight.shape[-1] == 1:
        weight = ops.squeeze(weight, -1)
    while weight.ndim < positions:
        weight = ops.expand_dims(weight, -1)
    return ops.broadcast_to(weight, logits.shape[:-1])
