"""Runs cases and judges what comes back, one of five verdicts.

matches
    within the error model, or the very error that was due
dialect
    not what was due, but what another convention's formula says, and that convention has a name (see `dialects`)
refuses
    a loud error about something that the implementation declares it lacks
silently wrong
    an answer, and not the right one
crashed
    an error that nobody declared, or the wrong one
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from unixent_conformance import expect, repro
from unixent_conformance.cases.model import ABOUT_VALUES, Call, Case, Finding, Raises
from unixent_conformance.harness import Harness, Mode, Unsupported
from unixent_conformance.implementation import Implementation
from unixent_conformance.oracle import Array
from unixent_conformance.results import Result, Verdict
from unixent_conformance.subjects import Subject as Subject
from unixent_conformance.subjects import WrongAnswer as WrongAnswer

# Arrays up to this many elements are compared with a copy after the call.
WATCHED = 1 << 16


def applies(case: Case, mode: Mode, hurried: bool = False) -> bool:
    """Whether a case means anything in a mode. In a hurry, a mode in which a case is dear is left the first derivatives
    among its few, and what is refused before anything is compiled; one that has no more than its few is left out."""
    if hurried and mode.cases != "all":
        first = case.few and case.asks != "second derivatives"
        if mode.cases == "few" or not (first or case.raises is not None):
            return False
    if mode.cases != "all" and not getattr(case, mode.cases):
        return False
    if case.asks == "second derivatives":
        return mode.autodiff and not mode.traced
    if mode.traced:
        return case.holds is None and (case.raises is None or case.raises.error in ABOUT_VALUES)
    return not mode.autodiff or (case.holds is None and case.raises is None and "gradient" in case.asks)


def run_case(case: Case, subject: Subject) -> Result:
    """The verdict on one case."""
    base = Result(case.id, case.feature, subject.mode.name, Verdict.MATCHES)
    call = case.build()
    lacks = lacking(case, subject)
    taken = frozenset(call.options) | frozenset(call.arrays())
    unknown = subject.implementation.unknown(taken - {"hidden", "classifier"})  # given by position, like logits
    if unknown:
        return replace(base, verdict=Verdict.REFUSES, detail=f"has no option {', '.join(sorted(unknown))}")
    copies = _copies(call)
    try:
        finding = _judge(case, call, subject)
    except WrongAnswer as wrong:
        finding = Finding(str(wrong))
    except Unsupported as reason:
        return replace(base, verdict=Verdict.REFUSES, detail=str(reason))
    except Exception as error:
        if lacks and (not subject.implementation.own_errors or "UnixentError" in _family(error)):
            return replace(base, verdict=Verdict.REFUSES, detail=f"declared without {_names(lacks)}: {error}")
        own_word = _may_lack(subject, case) and subject.harness.lacks(error, subject.mode)
        if own_word or isinstance(error, subject.implementation.refusals):
            return replace(base, verdict=Verdict.REFUSES, detail=f"{type(error).__name__}: {error}")
        text = f"{type(error).__name__}: {error}"
        return replace(base, verdict=Verdict.CRASHED, detail=text, repro=repro.snippet(case, call, subject, text))
    finding = finding or _written_to(call, copies)
    if finding is None:
        return base
    if "batch_invariant" in lacks:
        return replace(base, verdict=Verdict.REFUSES, detail=f"declared not batch invariant: {finding.detail}")
    if finding.units <= 1:
        return replace(base, units=finding.units)
    if isinstance(finding, WrongError) and lacks:  # it said no before it looked closer
        return replace(base, verdict=Verdict.REFUSES, detail=f"declared without {_names(lacks)}: {finding.detail}")
    verdict = Verdict.CRASHED if isinstance(finding, WrongError) else Verdict.WRONG
    snippet = repro.snippet(case, call, subject, finding.detail)
    return replace(base, verdict=verdict, detail=finding.detail, units=finding.units, repro=snippet)


def run_cases(cases: Iterable[Case], harness: Harness, implementation: Implementation) -> Iterator[Result]:
    """Every case in every mode of the harness in which it means something."""
    chosen = list(cases)
    for mode in harness.modes:
        subject = Subject(harness, implementation, mode)
        yield from (run_case(case, subject) for case in chosen if applies(case, mode))


def count(cases: Iterable[Case], harness: Harness) -> int:
    """How many results `run_cases` will give."""
    chosen = list(cases)
    return sum(applies(case, mode) for mode in harness.modes for case in chosen)


class WrongError(Finding):
    """An error was due and another came."""


def _judge(case: Case, call: Call, subject: Subject) -> Finding | None:
    if case.holds is not None:
        return case.holds(subject, call)
    if case.raises is not None and not subject.mode.traced:
        return _judge_error(case, call, subject, case.raises)
    parts = case.truth() if case.truth is not None else expect.expected(call, case.asks)
    answers = ask(case, call, subject)
    comparisons = [(part, part.compare(got)) for part, got in zip(parts, answers, strict=True)]
    part, worst = max(comparisons, key=lambda pair: np.nan_to_num(pair[1].units, nan=np.inf))
    if worst.ok:
        return Finding("", worst.units)
    if worst.reason:
        return Finding(worst.reason)
    where = f" at {worst.index}" if worst.index else ""
    detail = f"{part.name}{where}: got {worst.got!r}, expected {worst.expected!r} +- {worst.bound:.3g}"
    return Finding(detail + f" ({worst.units:.3g} times the bound)", worst.units)


def ask(case: Case, call: Call, subject: Subject) -> tuple[Array, ...]:
    """The parts of the answer to a case, in the order in which `expect.expected` gives them."""
    if case.asks == "loss":
        return (subject.loss(call),)
    if case.asks == "terms":
        return subject.terms(call)
    if case.asks == "linear gradients":
        return subject.linear_gradients(call)
    if case.asks == "second derivatives":
        return subject.curvature(call)
    return subject.gradient(call, "logits" if case.asks == "logits gradient" else "target")


def _judge_error(case: Case, call: Call, subject: Subject, due: Raises) -> Finding | None:
    try:
        ask(case, call, subject)
    except Unsupported:
        raise
    except Exception as error:
        if not subject.implementation.own_errors:
            return None
        text = f"{type(error).__name__}: {error}"
        if not {due.error, "UnixentError"} <= _family(error):
            return WrongError(f"expected {due.error} about {due.argument}; got {text}")
        missing = [word for word in (due.argument, *due.mentions) if word not in str(error)]
        return WrongError(f"the text of {text!r} does not name {', '.join(missing)}") if missing else None
    return Finding(f"expected {due.error} about {due.argument}; nothing was raised")


def lacking(case: Case, subject: Subject) -> frozenset[str]:
    """What of a case's needs, and of its mode's, the implementation does not declare."""
    return subject.implementation.lacking(case.needs | subject.mode.needs)


def _may_lack(subject: Subject, case: Case) -> bool:
    """Whether a transform is asked for that nobody declared, so that the framework's own refusal of it stands. What is
    declared of transforms is said of the loss of logits, not of a fused linear form."""
    asked = any(need.startswith("transform:") for need in case.needs | subject.mode.needs)
    return asked and (subject.implementation.capabilities is None or "linear" in case.needs)


def _family(error: Exception) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _names(needs: frozenset[str]) -> str:
    return ", ".join(sorted(needs))


def _copies(call: Call) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in call.arrays().items() if array.size <= WATCHED}


def _written_to(call: Call, copies: dict[str, bytes]) -> Finding | None:
    for name, before in copies.items():
        if call.arrays()[name].tobytes() != before:
            return Finding(f"{name} was written to")
    return None
