"""The keywords of the public functions and classes, with their types: for type checkers, ``help`` and editors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypedDict, TypeVar

from unixent.options import LossOptions, OnEmpty, Reduction, Validate

ArrayT = TypeVar("ArrayT")  # the framework's own array: its loss and gradients are of the same type
_Function = TypeVar("_Function", bound=Callable[..., Any])


class PositionOptions(TypedDict, total=False):
    """The keywords that say what the loss of a position is."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    scale: float
    softcap: float | None
    temperature: float
    num_classes: int | None
    dtype: Any
    validate: Validate


class ReductionOptions(PositionOptions, total=False):
    """Those, and how positions are reduced."""

    reduction: Reduction
    on_empty: OnEmpty


class TermsKeywords(PositionOptions, total=False):
    """The keywords of `unixent.loss_terms`."""

    axis: int


class LossKeywords(ReductionOptions, total=False):
    """The keywords of `unixent.cross_entropy`: the fields of `LossOptions`."""

    axis: int


def shows_keywords(keywords: type[PositionOptions]) -> Callable[[_Function], _Function]:
    """Have ``help`` and editors show the keywords, with their defaults, where a function says ``**options``."""

    def show(function: _Function) -> _Function:
        signature = inspect.signature(function)
        shown = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        shown += [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields(LossOptions)
            if field.name in keywords.__annotations__
        ]
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return show
