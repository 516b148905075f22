"""The functions of unixent with a fault each, for the tests of the command."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import unixent

FORMS = ("cross_entropy", "value_and_grad", "loss_terms", "linear_cross_entropy", "linear_value_and_grad")


def _planted(fault: Callable[[Any], Any]) -> SimpleNamespace:
    """The functions, of which `value_and_grad` does this to the answers of some calls."""

    def value_and_grad(logits: Any, target: Any, **options: Any) -> Any:
        answer = unixent.value_and_grad(logits, target, **options)
        return fault(answer) if options.get("z_loss") == 0.1 and options.get("reduction") == "sum" else answer

    functions = {name: getattr(unixent, name) for name in FORMS}
    return SimpleNamespace(**{**functions, "value_and_grad": value_and_grad}, CrossEntropyLoss=unixent.CrossEntropyLoss)


def _wrong(answer: Any) -> Any:
    loss, gradients = answer
    loss[...] += 1
    return loss, gradients


def _foreign(answer: Any) -> Any:
    raise KeyError("planted")


def _warns(answer: Any) -> Any:
    warnings.warn("planted", RuntimeWarning, stacklevel=2)
    return answer


def _dies(answer: Any) -> Any:
    os.abort()


right = _planted(lambda answer: answer)
wrong = _planted(_wrong)
foreign = _planted(_foreign)
warning = _planted(_warns)
crash = _planted(_dies)
