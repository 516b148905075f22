"""Verdicts on one case, for tests of the suite."""

from __future__ import annotations

from typing import Any

from unixent_conformance import case
from unixent_conformance.dialects import explain
from unixent_conformance.harness import Harness
from unixent_conformance.harnesses import load
from unixent_conformance.implementation import Implementation
from unixent_conformance.results import Result
from unixent_conformance.runner import run_case
from unixent_conformance.under_test import Subject
from unixent_mutants.plain import Plain


def judge(implementation: Implementation, id: str, mode: str = "eager", harness: Harness | None = None) -> Result:
    """The verdict on a case; NumPy's harness by default."""
    harness = harness or load("numpy")
    modes = {m.name: m for m in harness.modes}
    return run_case(case(id), Subject(harness, implementation, modes[mode]))


def raising(error: type[Exception], text: str = "no") -> Any:
    """A loss that raises."""

    def loss(*args: Any, **options: Any) -> Any:
        raise error(text)

    return loss


def explained(peer: type[Plain], id: str) -> Result:
    """The verdict on a loss in NumPy, as a dialect where one explains it."""
    tested = case(id)
    subject = Subject(load("numpy"), peer().implementation())
    return explain(run_case(tested, subject), tested, subject)


def named(peer: type[Plain], stem: str, words: tuple[str, ...] = ("value", "gradient")) -> set[str]:
    """The dialects of an input's cases; "silently wrong" where no one explains a case, nothing where it matches."""
    results = [explained(peer, f"{stem}/{word}") for word in words]
    return {name for result in results for name in (result.dialects or (result.verdict.value,))} - {"matches"}
