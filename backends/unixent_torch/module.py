"""The loss as torch modules: drop-ins for `torch.nn.CrossEntropyLoss` and `torch.nn.LinearCrossEntropyLoss`."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unixent.arguments import as_backend_array
from unixent.dispatch import CommonArguments, LinearArguments, linear_loss, logits_loss
from unixent.errors import BackendError, ShapeError
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions, OnEmpty, ParallelConfig, Reduction, Validate
from unixent.registry import get_backend

_HALF = (torch.float16, torch.bfloat16)
_DEFAULTS = LossOptions(on_empty="nan")


class _Option:
    """An option as an attribute of its module, as torch's losses have them; assigning to it checks it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: _LossModule | None, owner: type) -> Any:
        return self if module is None else getattr(module.options, self._name)

    def __set__(self, module: _LossModule, value: Any) -> None:
        module.options = replace(module.options, **{self._name: value})


def _is_floating(target: Any) -> bool:
    """Whether these are probabilities; of a tensor, an array or nested lists."""
    if isinstance(target, Tensor):
        return target.is_floating_point()
    with contextlib.suppress(ValueError):  # ragged lists, which the checks refuse
        return np.asarray(target).dtype.kind == "f"
    return False


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


class _LossModule(nn.Module):
    """What the two modules share: options that are made once, class weights as a buffer, a representation."""

    weight: Tensor | None
    reduction = _Option()
    ignore_index = _Option()
    label_smoothing = _Option()
    z_loss = _Option()
    softcap = _Option()
    on_empty = _Option()
    validate = _Option()

    def __init__(self, weight: Tensor | None, options: LossOptions, parallel_config: Any) -> None:
        super().__init__()
        if weight is not None and not isinstance(weight, Tensor):
            weight = as_backend_array(get_backend("torch"), "weight", weight, None)
        self.register_buffer("weight", weight)
        self.options = options
        self.parallel_config = None if parallel_config is None else ParallelConfig.of(parallel_config)
        get_backend("torch")  # so that nothing is looked up anew after a compiled first call

    def _common(self, target: Tensor, mask: Tensor | None, normalizer: Tensor | float | None) -> CommonArguments:
        return CommonArguments(target, self.weight, mask, normalizer, self.parallel_config, False, "torch")

    def _options_for(self, scores: Tensor, target: Tensor, changes: dict[str, Any]) -> LossOptions:
        """The options with these changes, and what torch's losses make of them for such inputs."""
        options = self.options
        half = isinstance(scores, Tensor) and scores.dtype in _HALF
        if options.dtype is None and half and torch.is_autocast_enabled(scores.device.type):
            changes["dtype"] = "float32"
        if options.ignore_index < 0 and options.ignore_index != DEFAULT_IGNORE_INDEX and _is_floating(target):
            changes["ignore_index"] = DEFAULT_IGNORE_INDEX  # a negative one has nothing to say of probabilities
        return replace(options, **changes) if changes else options

    def __prepare_scriptable__(self) -> None:
        raise BackendError(
            f"torch.jit.script: {type(self).__name__} is Python, which TorchScript does not compile; use torch.compile "
            "or torch.export, or torch.jit.trace"
        )

    def _shown(self, first: list[str], last: list[str]) -> str:
        """The arguments that differ from their defaults, between others."""
        shown = first if self.weight is None else [*first, f"weight=({self.weight.numel()},)"]
        for field in fields(LossOptions):
            value = getattr(self.options, field.name)
            if field.name != "axis" and value != getattr(_DEFAULTS, field.name):
                shown = [*shown, f"{field.name}={value!r}"]
        if self.parallel_config is not None:
            last = [*last, f"over {self.parallel_config.degree} processes"]
        return ", ".join((*shown, *last))


class CrossEntropyLoss(_LossModule):
    """`unixent.cross_entropy` where `torch.nn.CrossEntropyLoss` stood: the same constructor, the same call.

    As there, the classes lie along axis 1 of the input (axis 0 of a vector), a mean over nothing is NaN, and under
    autocast half-precision logits give a float32 loss. What differs is listed in ``docs/torch.md``: confident rows keep
    their relative accuracy, and an index outside [0, C) is an error or NaN, never undefined behaviour.

    Args:
        weight: class weights (C,); a buffer, so it moves with the module and is in its ``state_dict``.
        size_average, reduce: torch's deprecated pair; use ``reduction``.
        ignore_index, reduction, label_smoothing: as in `unixent.cross_entropy`.
        axis: the class axis; None for 1, or 0 where the input is a vector.
        z_loss, softcap, num_classes, on_empty, dtype, validate: as in `unixent.cross_entropy`.
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

    dtype = _Option()
    num_classes = _Option()

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
            softcap=softcap,
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


class LinearCrossEntropyLoss(_LossModule):
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
            borrowed: parameters() and state_dict() leave it to its owner. A module with a ``forward`` of its own
            or with forward hooks (an adapter, say) is called, and its logits exist as a whole.
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
        options = LossOptions(
            reduction=reduction,
            ignore_index=DEFAULT_IGNORE_INDEX if ignore_index is None else ignore_index,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            on_empty=on_empty,
            validate=validate,
        )
        super().__init__(weight, options, parallel_config)
        self.in_features, self.num_classes, self.chunk = in_features, num_classes, chunk
        if classifier is None:
            self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)
        elif _only_holds_weight(classifier) and tuple(classifier.weight.shape) != (num_classes, in_features):
            raise ShapeError(
                f"classifier: expected a module with a weight of shape {(num_classes, in_features)}; "
                f"got {tuple(classifier.weight.shape)}"
            )
        # In a tuple, or it would become a submodule.
        self._borrowed = None if classifier is None else (classifier,)

    @property
    def classifier(self) -> nn.Module:
        """The module whose weight and bias make the logits: the layer of its own, or the borrowed one."""
        return self.linear if self._borrowed is None else self._borrowed[0]

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
        classifier = self.classifier
        if not _only_holds_weight(classifier):
            logits = classifier(input)
            if logits.shape[-1:] != (self.num_classes,):
                raise ShapeError(
                    f"classifier: expected a module that makes {self.num_classes} logits; "
                    f"got logits of shape {tuple(logits.shape)}"
                )
            called: Tensor = logits_loss(
                logits, self._common(target, mask, normalizer), self._options_for(logits, target, {})
            )
            return called
        linear = LinearArguments(input, classifier.weight, getattr(classifier, "bias", None), self.chunk)
        options = self._options_for(input, target, {})
        loss: Tensor = linear_loss(linear, self._common(target, mask, normalizer), options)
        return loss

    def extra_repr(self) -> str:
        first = [f"in_features={self.in_features}", f"num_classes={self.num_classes}"]
        first += [] if self._borrowed is None else ["borrowed"]
        return self._shown(first, [] if self.chunk is None else [f"chunk={self.chunk}"])
