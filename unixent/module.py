"""The configured form of the loss: options once, then a callable of logits, label and mask."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from unixent.arguments import adopt, resolve
from unixent.errors import NonFiniteError
from unixent.functions import cross_entropy, loss_terms, value_and_grad
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions, ParallelConfig
from unixent.protocol import Array, LossTerms

logger = logging.getLogger("unixent")


class CrossEntropyLoss:
    r"""`cross_entropy` with its options fixed, called as ``loss(logits, label, input_mask=None)``.

    The first three parameters are those of MindFormers' ``mindformers.core.CrossEntropyLoss``, and with the defaults
    the value is the one documented there: ``sum(mask * L_label) / sum(mask)``, in the dtype of logits. What its
    documentation promises beyond that (class weights, ignore_index, reduction, class probabilities) holds here too.

    Args:
        parallel_config: None, a `ParallelConfig`, or any object with ``data_parallel`` and ``model_parallel``.
        check_for_nan_in_loss_and_grad: log this process's local loss to the ``unixent`` logger (level INFO) and raise
            when loss or gradient is NaN or infinite. A debugging aid: it computes the loss and its gradient once more
            and reads them, so it has no effect on values that cannot be read (under a trace).
        calculate_per_token_loss: return `LossTerms` (numerator, denominator) instead of the reduced loss.
        weight: class weights (C,).
        reduction, axis, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate, backend: as in
            `cross_entropy`.

    Raises:
        OptionError: an option is out of range; unknown keywords raise TypeError, as for any Python call.

    Example:
        >>> import numpy as np, unixent
        >>> loss = unixent.CrossEntropyLoss(label_smoothing=0.1)
        >>> loss
        CrossEntropyLoss(label_smoothing=0.1)
        >>> logits, label = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0])
        >>> print(loss(logits, label, input_mask=np.array([1, 0])).round(6))
        0.226928
        >>> terms = unixent.CrossEntropyLoss(calculate_per_token_loss=True)(logits, label)
        >>> print(terms.numerator.round(6), terms.denominator)
        1.44019 2.0
    """

    def __init__(
        self,
        parallel_config: Any = None,
        check_for_nan_in_loss_and_grad: bool = False,
        calculate_per_token_loss: bool = False,
        *,
        weight: Array | None = None,
        reduction: str = "mean",
        axis: int = -1,
        ignore_index: int = DEFAULT_IGNORE_INDEX,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        on_empty: str = "zero",
        dtype: Any = None,
        validate: str = "auto",
        backend: str | None = None,
    ) -> None:
        self.parallel_config = None if parallel_config is None else ParallelConfig.of(parallel_config)
        self.check_for_nan_in_loss_and_grad = bool(check_for_nan_in_loss_and_grad)
        self.calculate_per_token_loss = bool(calculate_per_token_loss)
        self.weight = weight
        self.options = LossOptions(
            axis, reduction, ignore_index, label_smoothing, z_loss, softcap, on_empty, dtype, validate
        )
        self.backend = backend

    def __call__(
        self, logits: Array, label: Array, input_mask: Array | None = None, *, normalizer: Array | float | None = None
    ) -> Array | LossTerms:
        """The loss in nats.

        Args:
            logits: (N, C), or any shape with the classes along ``axis``.
            label: class indices (N,), or probabilities of the shape of logits.
            input_mask: position weights (N,): 0 switches a position off, fractions weigh it.
            normalizer: replaces the denominator of the mean, as in `cross_entropy`.

        Raises:
            NonFiniteError: loss or gradient is NaN or infinite and ``check_for_nan_in_loss_and_grad`` is set; the
                message names the first bad position.
            UnixentError: as `cross_entropy`.
        """
        shared: dict[str, Any] = {
            name: getattr(self.options, name)
            for name in ("axis", "ignore_index", "label_smoothing", "z_loss", "softcap", "dtype", "validate")
        }
        shared |= {
            "weight": self.weight,
            "mask": input_mask,
            "parallel": self.parallel_config,
            "backend": self.backend,
        }
        reduced: dict[str, Any] = {
            "reduction": self.options.reduction,
            "on_empty": self.options.on_empty,
            "normalizer": normalizer,
        }
        if self.calculate_per_token_loss:
            result: Array | LossTerms = loss_terms(logits, label, **shared)
            reduced = {"reduction": "sum"}
        else:
            result = cross_entropy(logits, label, **shared, **reduced)
        if self.check_for_nan_in_loss_and_grad:
            self._check(logits, label, shared, reduced)
        return result

    def _check(self, logits: Array, label: Array, shared: dict[str, Any], reduced: dict[str, Any]) -> None:
        backend = resolve(self.backend, logits, "logits")
        lead = adopt(backend, "logits", logits)
        if not lead.info.concrete:
            return
        loss, grad = value_and_grad(logits, label, **shared, **reduced)
        logger.info("local loss: %s", loss)
        flat = backend.first_nonfinite(loss)
        if flat is None and backend.first_nonfinite(grad) is None:
            return
        shape = lead.info.shape
        axis = self.options.axis % len(shape)
        positions = shape[:axis] + shape[axis + 1 :]
        # The processes of a split loss see the same loss and go this way together; their gradients are their own.
        if flat is not None and reduced["reduction"] != "none":
            flat = backend.first_nonfinite(cross_entropy(logits, label, **shared, reduction="none"))
        if flat is not None:
            where = tuple(int(i) for i in np.unravel_index(flat, positions))
            raise NonFiniteError(f"loss: expected finite values; got a NaN or infinite loss at position {where}")
        flat = backend.first_nonfinite(grad)
        if flat is not None:
            index = [int(i) for i in np.unravel_index(flat, shape)]
            del index[axis]
            raise NonFiniteError(
                f"gradient: expected finite values; got a NaN or infinite gradient at position {tuple(index)}"
            )
        raise NonFiniteError(f"loss: expected a finite value; got {loss}, though every position's own loss is finite")

    def __repr__(self) -> str:
        defaults = LossOptions()
        shown = {
            name: getattr(self, name)
            for name in ("parallel_config", "check_for_nan_in_loss_and_grad", "calculate_per_token_loss", "backend")
            if getattr(self, name)
        }
        shown |= {
            name: getattr(self.options, name)
            for name in LossOptions.__dataclass_fields__
            if getattr(self.options, name) != getattr(defaults, name)
        }
        shown = {name: repr(value) for name, value in shown.items()}
        if self.weight is not None:
            shown["weight"] = "..."
        return f"CrossEntropyLoss({', '.join(f'{name}={value}' for name, value in shown.items())})"
