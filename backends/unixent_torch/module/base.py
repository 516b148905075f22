"""What the two loss modules of torch share: options as attributes, class weights as a buffer, a representation."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from unixent.arguments import PYTHON_TYPES, CommonArguments, as_backend_array, from_python
from unixent.errors import BackendError, UnixentError, refuse_script
from unixent.options import DEFAULT_IGNORE_INDEX, LossOptions, ParallelConfig
from unixent.registry import get_backend
from unixent.topk import TopK

_HALF = (torch.float16, torch.bfloat16)
_DEFAULTS = LossOptions(on_empty="nan")


class Option:
    """An option as an attribute of its module, as torch's losses have them; assigning to it checks it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, module: LossModule | None, owner: type) -> Any:
        return self if module is None else getattr(module.options, self._name)

    def __set__(self, module: LossModule, value: Any) -> None:
        module.options = replace(module.options, **{self._name: value})


def _is_floating(target: Any) -> bool:
    """Whether these are probabilities; of a tensor, an array or nested lists."""
    if isinstance(target, TopK):
        return False
    if isinstance(target, Tensor):
        return target.is_floating_point()
    if torch.compiler.is_dynamo_compiling():  # which knows no dtype of NumPy's
        return torch.as_tensor(np.asarray(target)).is_floating_point()
    with contextlib.suppress(UnixentError):  # what the checks refuse, on every process
        target = from_python("target", target) if isinstance(target, PYTHON_TYPES) else target
    return isinstance(target, np.ndarray | np.generic) and target.dtype.kind == "f"


def refuse_symbolic(scores: Any) -> None:
    """Raise for what torch.fx.symbolic_trace calls a module with."""
    if isinstance(scores, torch.fx.Proxy):
        raise BackendError(
            "input: torch.fx.symbolic_trace has no shape to check; make the loss a leaf module of the Tracer, or use "
            "torch.export or make_fx"
        )


class LossModule(nn.Module):
    """What the two modules share: options that are made once, class weights as a buffer, a representation."""

    weight: Tensor | None
    reduction = Option()
    ignore_index = Option()
    label_smoothing = Option()
    z_loss = Option()
    scale = Option()
    softcap = Option()
    temperature = Option()
    on_empty = Option()
    validate = Option()

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
        half = isinstance(scores, Tensor) and scores.dtype in _HALF and not scores.is_meta  # which has no autocast
        if options.dtype is None and half and torch.is_autocast_enabled(scores.device.type):
            changes["dtype"] = "float32"
        if options.ignore_index < 0 and options.ignore_index != DEFAULT_IGNORE_INDEX and _is_floating(target):
            changes["ignore_index"] = DEFAULT_IGNORE_INDEX  # a negative one has nothing to say of probabilities
        return replace(options, **changes) if changes else options

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(type(self).__name__)

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
