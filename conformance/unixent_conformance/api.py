"""The suite from Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from unixent_conformance import harnesses, implementation
from unixent_conformance.cases import catalogue, find
from unixent_conformance.cases.model import Call, Case
from unixent_conformance.harness import Harness
from unixent_conformance.implementation import Implementation
from unixent_conformance.runner import Result, Subject, Verdict, count, run_case, run_cases


@dataclass(frozen=True)
class Report:
    """The verdicts of one implementation.

    ok: nothing silently wrong, nothing crashed. counts: how many cases got each verdict. cases: a `Result` each, with
    id, feature, mode, verdict, detail, units (the largest error over its bound) and repro (lines to paste).
    """

    implementation: str
    framework: str
    version: str
    cases: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        return all(result.verdict.ok for result in self.cases)

    @property
    def counts(self) -> dict[Verdict, int]:
        found = Counter(result.verdict for result in self.cases)
        return {verdict: found[verdict] for verdict in Verdict}

    def by_feature(self) -> dict[str, tuple[Result, ...]]:
        features = dict.fromkeys(result.feature for result in self.cases)
        return {name: tuple(r for r in self.cases if r.feature == name) for name in features}


def run(
    tested: Any,
    framework: str | None = None,
    *,
    features: Sequence[str] | None = None,
    quick: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run the catalogue.

    tested: the name of a backend of unixent ("numpy"), "module:function", a callable that takes what
        `unixent.cross_entropy` takes, or an `Implementation`.
    framework: whose arrays it takes, by the name of a harness or "module:object" of your own; a backend's own harness
        by default.
    features: only these features of the catalogue. quick: the cases that make a run of seconds.
    progress: called with (done, of how many) after each case.

    >>> from unixent_conformance import run
    >>> from unixent_conformance.mutation.plain import plain
    >>> run(plain, "numpy", features=["z-loss"], quick=True).ok
    True
    """
    found, harness = resolve(tested, framework)
    chosen = catalogue(quick=quick, features=tuple(features or ()))
    total, results = count(chosen, harness), []
    for result in run_cases(chosen, harness, found):
        results.append(result)
        if progress is not None:
            progress(len(results), total)
    version = ", ".join(filter(None, (found.version, harness.version())))
    return Report(found.name, harness.name, version, tuple(results))


def resolve(tested: Any, framework: str | None = None) -> tuple[Implementation, Harness]:
    """The implementation and the harness that `run` means."""
    if not isinstance(tested, str):
        return implementation.wrap(tested), harnesses.load(framework or "numpy")
    if ":" in tested:
        return implementation.load(tested), harnesses.load(framework or "numpy")
    return implementation.of_backend(tested), harnesses.load(framework or tested)


def subject(tested: Any, framework: str | None = None, mode: str = "eager") -> Subject:
    """An implementation seen through its harness, NumPy in and NumPy out: what a snippet of a failure starts with."""
    found, harness = resolve(tested, framework)
    modes = {m.name: m for m in harness.modes}
    if mode not in modes:
        raise LookupError(f"{harness.name} has no mode {mode!r}; it has {', '.join(modes)}")
    return Subject(harness, found, modes[mode])


def case(id: str, call: Call | None = None) -> Case:
    """The case of an id, with another call in its place if one is given."""
    found = find(id)
    return found if call is None else replace(found, build=lambda: call)


def check(case: Case, subject: Subject) -> None:
    """Raise AssertionError unless the case holds.

    >>> from unixent_conformance import case, check, subject
    >>> check(case("mask/bool/float32-mean/value"), subject("unixent_conformance.mutation.plain:plain", "numpy"))
    """
    result = run_case(case, subject)
    if not result.verdict.ok:
        raise AssertionError(f"{result.id} [{result.mode}] {result.verdict.value}: {result.detail}")
