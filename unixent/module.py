"""The configured form of the loss: options once, then a callable of logits, label and mask."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar, overload

import numpy as np

from unixent import dispatch
from unixent.arguments import CommonArguments, describe_arguments
from unixent.errors import NonFiniteError, option_error, refuse_script
from unixent.keywords import ArrayT, LossKeywords, shows_keywords
from unixent.options import LossOptions, ParallelConfig
from unixent.protocol import Array, LossTerms

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

PerToken = TypeVar("PerToken", bound=bool)  # whether the terms of the mean are returned


class CrossEntropyLoss(Generic[PerToken]):
    r"""`cross_entropy` with its options fixed, called as ``loss(logits, label, input_mask=None)``.

    The first three parameters are those of MindFormers' ``mindformers.core.CrossEntropyLoss``, and with the defaults
    the value is the one documented there: ``sum(mask * L_label) / sum(mask)``, in the dtype of logits. What its
    documentation promises beyond that (class weights, ignore_index, reduction, class probabilities) holds here too.

    Args:
        parallel_config: None, a `ParallelConfig`, or any object with ``data_parallel`` and ``model_parallel``.
        check_for_nan_in_loss_and_grad: log this process's local loss to the ``unixent`` logger (level INFO) and raise
            when loss or gradient is NaN or infinite. A debugging aid: it computes the loss and its gradient once more
            and reads them, so it has no effect on values that cannot be read (under a trace).
        calculate_per_token_loss: return `LossTerms` (numerator, denominator) instead of the mean; ``reduction``,
            ``on_empty`` and ``normalizer`` would have no effect then, and are refused.
        weight: class weights (C,).
        reduction, axis, ignore_index, label_smoothing, z_loss, scale, softcap, temperature, num_classes, on_empty,
        dtype, validate, backend: as in `cross_entropy`.

    Raises:
        OptionError: an option is out of range, or has no effect beside another. Unknown keywords raise TypeError, as
            for any Python call.

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

    @overload
    def __init__(
        self: CrossEntropyLoss[Literal[False]],
        parallel_config: Any = None,
        check_for_nan_in_loss_and_grad: bool = False,
        calculate_per_token_loss: Literal[False] = False,
        *,
        weight: Any = None,
        backend: str | None = None,
        **options: Unpack[LossKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: CrossEntropyLoss[Literal[True]],
        parallel_config: Any = None,
        check_for_nan_in_loss_and_grad: bool = False,
        *,
        calculate_per_token_loss: Literal[True],
        weight: Any = None,
        backend: str | None = None,
        **options: Unpack[LossKeywords],
    ) -> None: ...
    @overload
    def __init__(
        self: CrossEntropyLoss[bool],
        parallel_config: Any = None,
        check_for_nan_in_loss_and_grad: bool = False,
        calculate_per_token_loss: bool = False,
        *,
        weight: Any = None,
        backend: str | None = None,
        **options: Unpack[LossKeywords],
    ) -> None: ...
    @shows_keywords(LossKeywords)
    def __init__(
        self,
        parallel_config: Any = None,
        check_for_nan_in_loss_and_grad: bool = False,
        calculate_per_token_loss: bool = False,
        *,
        weight: Any = None,
        backend: str | None = None,
        **options: Unpack[LossKeywords],
    ) -> None:
        self.parallel_config = None if parallel_config is None else ParallelConfig.of(parallel_config)
        self.check_for_nan_in_loss_and_grad = bool(check_for_nan_in_loss_and_grad)
        self.calculate_per_token_loss = bool(calculate_per_token_loss)
        self.weight = weight
        self.options = LossOptions(**options)
        self.backend = backend
        if self.calculate_per_token_loss:
            for name in ("reduction", "on_empty"):
                self._refuse_beside_terms(name, getattr(self.options, name), getattr(LossOptions(), name))
        # The terms of a mean are sums.
        self._evaluated = replace(self.options, reduction="sum") if self.calculate_per_token_loss else self.options

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(type(self).__name__)

    @staticmethod
    def _refuse_beside_terms(name: str, value: object, default: object) -> None:
        if value is not default and value != default:
            expected = f"{default!r} with calculate_per_token_loss, which returns the terms of the mean"
            raise option_error(name, expected, value)

    @overload
    def __call__(
        self: CrossEntropyLoss[Literal[True]],
        logits: object,
        label: object,
        input_mask: object = None,
        *,
        normalizer: object = None,
    ) -> LossTerms: ...
    @overload
    def __call__(
        self: CrossEntropyLoss[Literal[False]],
        logits: ArrayT,
        label: object,
        input_mask: object = None,
        *,
        normalizer: object = None,
    ) -> ArrayT: ...
    @overload
    def __call__(
        self: CrossEntropyLoss[bool],
        logits: object,
        label: object,
        input_mask: object = None,
        *,
        normalizer: object = None,
    ) -> Any: ...
    def __call__(self, logits: Any, label: Any, input_mask: Any = None, *, normalizer: Any = None) -> Any:
        """The loss in nats.

        Args:
            logits: (N, C), or any shape with the classes along ``axis``.
            label: class indices (N,), probabilities of the shape of logits, or a `TopK`.
            input_mask: position weights (N,): 0 switches a position off, fractions weigh it.
            normalizer: replaces the denominator of the mean, as in `cross_entropy`.

        Raises:
            NonFiniteError: loss or gradient is NaN or infinite and ``check_for_nan_in_loss_and_grad`` is set; the
                message names the first bad position.
            UnixentError: as `cross_entropy`.
        """
        if self.calculate_per_token_loss and normalizer is not None:
            self._refuse_beside_terms("normalizer", normalizer, None)
        common = dispatch.CommonArguments(
            label,
            self.weight,
            input_mask,
            normalizer,
            self.parallel_config,
            self.calculate_per_token_loss,
            self.backend,
        )
        result = dispatch.logits_loss(logits, common, self._evaluated)
        if self.check_for_nan_in_loss_and_grad:
            self._check(logits, common._replace(return_terms=False), self._evaluated)
        return result

    def _check(self, logits: Array, common: CommonArguments, options: LossOptions) -> None:
        backend = dispatch.select_backend(common, ("logits",), logits)
        info = describe_arguments(backend, {"logits": logits})["logits"].info
        if not info.concrete:
            return
        import logging  # a tenth of what `import unixent` would cost, and for this check alone

        loss, grad = dispatch.logits_value_and_grad(logits, common, options, None, "logits")
        logging.getLogger("unixent").info("local loss: %s", loss)
        flat = backend.first_nonfinite(loss)
        if flat is None and backend.first_nonfinite(grad) is None:
            return
        axis = options.axis % len(info.shape)
        positions = info.shape[:axis] + info.shape[axis + 1 :]
        # The processes of a split loss see the same loss and go this way together; their gradients are their own.
        if flat is not None and options.reduction != "none":
            unreduced = dispatch.logits_loss(
                logits, common._replace(normalizer=None), replace(options, reduction="none")
            )
            flat = backend.first_nonfinite(unreduced)
        if flat is not None:
            where = tuple(int(i) for i in np.unravel_index(flat, positions))
            raise NonFiniteError(f"loss: expected finite values; got a NaN or infinite loss at position {where}")
        flat = backend.first_nonfinite(grad)
        if flat is not None:
            index = [int(i) for i in np.unravel_index(flat, info.shape)]
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
            for name in (field.name for field in fields(LossOptions))
            if getattr(self.options, name) != getattr(defaults, name)
        }
        shown = {name: repr(value) for name, value in shown.items()}
        if self.weight is not None:
            shown["weight"] = "..."
        return f"CrossEntropyLoss({', '.join(f'{name}={value}' for name, value in shown.items())})"
