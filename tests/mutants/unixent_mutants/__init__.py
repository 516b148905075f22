"""Proof that the suite can fail: a plain implementation that is right, and many that are each wrong in one way.

`mutants()` lists them; the docstring of each says what is wrong, its features are those that should name the fault, and
`caught` gives the case that does. Those are in NumPy; `faults` has losses that are wrong under the transforms of torch,
JAX and MindSpore.
"""

from __future__ import annotations

from importlib import import_module

from unixent_conformance.cases import catalogue
from unixent_conformance.dialects import explain
from unixent_conformance.harnesses import load
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Tier
from unixent_conformance.results import Result, Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.under_test import Subject
from unixent_mutants.plain import REGISTRY, Plain

FAMILIES = (
    *("reductions", "targets", "numerics", "class_blocks", "gradients", "handling", "fused", "split", "padding"),
    *("temperature", "statistics", "sparse", "reports", "reports_linear", "layouts"),
)


def mutants() -> dict[str, type[Plain]]:
    """Every wrong implementation, by name."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
    return dict(REGISTRY)


def __getattr__(name: str) -> Implementation:
    # Each mutant can be named like any implementation: "unixent_mutants:MaskAsBool".
    try:
        return mutants()[name]().implementation()
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def unexcused(mutant: type[Plain]) -> tuple[Result | None, set[str]]:
    """The first of those cases, if they are quick, that no dialect explains, and the dialects that explain others."""
    subject, dialects = Subject(load("numpy"), mutant().implementation()), set[str]()
    for case in catalogue(Tier.QUICK, features=mutant.features):
        result = explain(run_case(case, subject), case, subject)
        if result.verdict is Verdict.WRONG:
            return result, dialects
        dialects |= set(result.dialects)
    return None, dialects


def caught(mutant: type[Plain]) -> Result | None:
    """The first case of the features that should name the fault which finds it silently wrong; quick cases first."""
    subject = Subject(load("numpy"), mutant().implementation())
    cases = catalogue(features=mutant.features)
    for case in sorted(cases, key=lambda case: not case.within(Tier.QUICK)):
        result = run_case(case, subject)
        if result.verdict is Verdict.WRONG:
            return result
    return None
