"""Wrong implementations in a framework's own arrays, each wrong under one of its transforms and right elsewhere.

They are functions, unlike the mutants of NumPy: what is wrong with one is how the framework differentiates, maps or
traces it. `faults("torch")` lists those of a framework, `noticed` says which case finds one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from unixent_conformance.cases import catalogue
from unixent_conformance.harnesses import load
from unixent_conformance.implementation import wrap
from unixent_conformance.results import Result, Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.selection import applies
from unixent_conformance.under_test import Subject

FRAMEWORKS = ("torch", "jax", "mindspore")


@dataclass(frozen=True)
class Fault:
    """A wrong loss: the mode and the features that should name what is wrong, which its docstring says."""

    loss: Callable[..., Any]
    mode: str
    features: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.loss.__name__

    @property
    def framework(self) -> str:
        return self.loss.__module__.rsplit("_", 1)[-1]


_FAULTS: list[Fault] = []


def fault(mode: str, *features: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a wrong loss."""

    def register(loss: Callable[..., Any]) -> Callable[..., Any]:
        _FAULTS.append(Fault(loss, mode, features))
        return loss

    return register


def faults(framework: str) -> dict[str, Fault]:
    """The wrong implementations of a framework, by name."""
    for family in ("transforms", "reports"):
        if find_spec(f"unixent_mutants.{family}_{framework}"):
            import_module(f"unixent_mutants.{family}_{framework}")
    return {fault.name: fault for fault in _FAULTS if fault.framework == framework}


def noticed(fault: Fault) -> Result | None:
    """The first case of its mode and features that finds it silently wrong."""
    harness = load(fault.framework)
    (mode,) = (mode for mode in harness.modes if mode.name == fault.mode)
    subject = Subject(harness, wrap(fault.loss), mode)
    for case in catalogue(features=fault.features):
        if applies(case, mode):
            result = run_case(case, subject)
            if result.verdict is Verdict.WRONG:
                return result
    return None
