"""The suite from Python."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from unixent_conformance import harnesses, xfails
from unixent_conformance.cases import catalogue, find
from unixent_conformance.cases.huge import FEATURE
from unixent_conformance.dialects import explain, settle
from unixent_conformance.fitting import fitted
from unixent_conformance.harness import Harness
from unixent_conformance.implementation import Implementation, load, of_backend, wrap
from unixent_conformance.isolation import Isolated, Plan, Task
from unixent_conformance.model import Call, Case
from unixent_conformance.results import Report, Result, plural
from unixent_conformance.runner import run_case
from unixent_conformance.selection import Choice, by_weight, select
from unixent_conformance.under_test import Subject


def run(
    implementation: Any,
    framework: str | None = None,
    *,
    features: Sequence[str] | None = None,
    quick: bool = False,
    strict: bool = False,
    linear: bool = False,
    isolate: bool | None = None,
    timeout: float = 60.0,
    jobs: int = 1,
    modes: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    expected_failures: str | Path | None = None,
    budget: float | None = None,
    device: str | None = None,
    huge: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run the catalogue.

    implementation: the name of a backend of unixent ("numpy"), "module:function", a callable that takes what
        `unixent.cross_entropy` takes, or an `Implementation`. Options that its signature lacks count as refused.
    framework: whose arrays it takes, by the name of a harness or "module:object" of your own; a backend's own harness
        by default, for a callable that of the framework of which its module has names, numpy's where it has none.
    features: only these features of the catalogue. quick: the cases that make a run of seconds.
    strict: a dialect is wrong. The backends of unixent are always judged so.
    linear: it is a fused linear form, of (hidden, classifier, target), and is tested through an identity classifier.
    isolate: run the cases in a worker process that is replaced when it dies, or is silent for `timeout` seconds: that
        case has crashed, and the run goes on. By default so for "module:function" and for a callable that a new process
        can import; not for a backend of unixent and an `Implementation`.
    jobs: how many worker processes share the cases, at the most; the report is the same. More than 1 needs something
        that a new process can import, and a backend's worker may be silent for as long as it likes.
    modes, dtypes: only these modes of the framework, only cases of these dtypes. skip: features, or patterns of ids, to
        leave out.
    expected_failures: a file of known failures (see `xfails`): they are none, and their absence is one.
    budget: so many seconds, in which what tells most is run first.
    device: where the arrays are put, if the harness can ("cuda:0").
    huge: also cases of more than 2^31 logits, of 4 or 8 GiB each and their gradient as much.
    progress: called with (done, of how many) after each case.

    Raises `Interrupted`, a KeyboardInterrupt that has the report so far, where Ctrl-C ends it.

    >>> from unixent_conformance import run
    >>> run("numpy", features=["z-loss"], quick=True).ok
    True
    """
    path = None if isinstance(implementation, Implementation) else importable(implementation)
    if isolate is None:
        isolate = path is not None and ":" in path
    if jobs < 1:
        raise ValueError(f"jobs: expected 1 or more; got {jobs}")
    if (isolate or jobs > 1) and path is None:
        asked = "isolate" if isolate else "jobs"
        raise ValueError(f"{asked}: a new process cannot import {implementation!r}; pass 'module:function'")
    choice = Choice(quick, tuple(features or ()), tuple(modes or ()), tuple(dtypes or ()), tuple(skip), huge)
    name = path or wrap(implementation).name
    reasons = {} if expected_failures is None else xfails.expected(Path(expected_failures), name)
    task = Task(path or "", framework, choice, strict, linear, device, budget is not None, tuple(reasons))
    source: Isolated | Prepared
    if isolate or jobs > 1:
        source = Isolated(task, timeout if isolate else None, jobs)
    else:
        source = prepare(task, implementation)
    plan, results, start = source.plan, list[Result](), monotonic()
    end = start + (inf if budget is None else budget)

    def early() -> list[Result]:
        """What other workers had judged before its turn."""
        judged = source.early if isinstance(source, Isolated) else {}
        return [xfails.judged(judged[pair], reasons.get(pair)) for pair in plan.cases if pair in judged]

    why = ""
    try:
        with closing(iter(source)) as running:
            for result in running:
                results.append(xfails.judged(result, reasons.get((result.id, result.mode))))
                if progress is not None:
                    progress(len(results), len(plan.cases))
                if monotonic() > end and len(results) < len(plan.cases):
                    why = f"{budget:g} s were over"
                    break
    except KeyboardInterrupt as stop:
        results += early()
        raise Interrupted(_report(plan, results, start, str(stop) or "Ctrl-C")) from stop
    return _report(plan, [*results, *early()], start, why=why)


class Interrupted(KeyboardInterrupt):
    """A run that was ended before its last case, by Ctrl-C or a signal: `report` has the cases that it had judged."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"{report.implementation}: {report.stopped}")
        self.report = report


def _report(plan: Plan, results: Sequence[Result], start: float, stopped: str = "", why: str = "") -> Report:
    why, not_run = why or (f"the run was stopped by {stopped}" if stopped else ""), len(plan.cases) - len(results)
    left_out = (f"{plural(not_run, 'case')}, since {why}", *plan.left_out) if why and not_run else plan.left_out
    about = (left_out, now(), machine(), stopped, round(monotonic() - start, 1))
    return Report(plan.name, plan.framework, plan.version, settle(results), *about)


def now() -> str:
    """The time in UTC, to the minute."""
    return f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"


def machine() -> str:
    """What a report says of the machine: nothing that names it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{platform.system()} {platform.machine()}, {plural(cores, 'core')}, Python {platform.python_version()}"


@contextmanager
def undisturbed() -> Iterator[None]:
    """The suite's own arithmetic underflows and divides by 0, whatever an implementation has made NumPy and the
    warnings raise."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Prepared:
    """A run in this process: `plan` says what it will be, iteration runs it."""

    plan: Plan
    subjects: dict[str, Subject]
    strict: bool
    linear: bool

    def judge(self, id: str, mode: str) -> Result:
        """The verdict on one case; what the oracle calls wrong may be right in a dialect."""
        subject, caller = self.subjects[mode], os.getpid()
        with undisturbed():
            case = fitted(find(id), subject.implementation)
            result = run_case(case, subject)
            result = result if self.strict else explain(result, case, subject)
        if os.getpid() != caller:  # of a process that the implementation has forked: only its parent goes on
            os._exit(0)
        return result

    def __iter__(self) -> Generator[Result, None, None]:
        return (self.judge(id, mode) for id, mode in self.plan.cases)


def prepare(task: Task, implementation: Any = None) -> Prepared:
    """The implementation of a task, loaded, and the cases that it means."""
    given = task.tested if implementation is None else implementation
    tested, harness = find_tested(given, task.framework, task.device)
    if task.device is not None:
        harness = harness.on(task.device)
    if task.linear:
        tested = tested.seen_as_logits()
    with undisturbed():
        everything = catalogue() + (catalogue(features=(FEATURE,)) if task.choice.huge else [])
    asked = {(case.id, mode.name) for case, mode in select(everything, harness.modes)} if task.listed else ()
    unasked = [f"{mode}-{id}" for id, mode in task.listed if (id, mode) not in asked]
    if unasked:
        modes = ", ".join(mode.name for mode in harness.modes)
        raise ValueError(
            f"expected failures: not asked of {harness.name}, whose modes are {modes}: {', '.join(unasked)}"
        )
    cases = [case for case in everything if tested.answers(case)]
    pairs = task.choice.of(cases, harness.modes, everything)
    left_out = tuple(task.choice.left_out(pairs, cases, harness.modes))
    ids = tuple((case.id, mode.name) for case, mode in (by_weight(pairs) if task.by_weight else pairs))
    plan = Plan(tested.name, harness.name, Subject(harness, tested).version, ids, left_out)
    subjects = {mode.name: Subject(harness, tested, mode) for mode in harness.modes}
    return Prepared(plan, subjects, task.strict or tested.own_errors, task.linear)


def importable(implementation: Any) -> str | None:
    """How a new process finds an implementation, if it can: a string as it is, a function of a module by its path.

    >>> import unixent
    >>> importable(unixent.cross_entropy)
    'unixent.functions:cross_entropy'
    """
    if isinstance(implementation, str):
        return implementation
    module, name = getattr(implementation, "__module__", None), getattr(implementation, "__qualname__", "")
    if module in (None, "__main__") or getattr(sys.modules.get(module), name, None) is not implementation:
        return None
    try:
        return f"{module}:{name}" if find_spec(module) is not None else None
    except (ImportError, ValueError):
        return None


def find_tested(
    implementation: Any, framework: str | None = None, device: str | None = None
) -> tuple[Implementation, Harness]:
    """The implementation and the harness that `run` means."""
    if not isinstance(implementation, str):
        tested = wrap(implementation)
    elif ":" in implementation:
        tested = load(implementation)
    else:
        return of_backend(implementation, device), harnesses.load(framework or implementation)
    return tested, harnesses.load(framework) if framework else harnesses.of_callable(tested.loss)


def subject(implementation: Any, framework: str | None = None, mode: str = "eager", *, linear: bool = False) -> Subject:
    """An implementation seen through its harness, NumPy in and NumPy out: what a snippet of a failure starts with."""
    tested, harness = find_tested(implementation, framework)
    tested = tested.seen_as_logits() if linear else tested
    modes = {m.name: m for m in harness.modes}
    if mode not in modes:
        raise LookupError(f"{harness.name} has no mode {mode!r}; it has {', '.join(modes)}")
    return Subject(harness, tested, modes[mode])


def case(id: str, call: Call | None = None) -> Case:
    """The case of an id, with another call in its place if one is given."""
    return find(id) if call is None else replace(find(id), build=lambda: call)


def check(case: Case, subject: Subject) -> None:
    """Raise AssertionError unless the case holds.

    >>> from unixent_conformance import case, check, subject
    >>> check(case("mask/bool/float32-mean/value"), subject("numpy"))
    """
    result = run_case(case, subject)
    if not result.verdict.ok:
        raise AssertionError(f"{result.id} [{result.mode}] {result.verdict.value}: {result.detail}")
