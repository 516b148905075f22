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

import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from unixent_conformance.expected import expected_of
from unixent_conformance.fitting import fitted
from unixent_conformance.harness import Mode, Unsupported
from unixent_conformance.model import Call, Case, Finding, Raises
from unixent_conformance.results import Result, Verdict
from unixent_conformance.returned import WrongAnswer
from unixent_conformance.snippet import snippet
from unixent_conformance.under_test import Subject

# Arrays up to this many elements are compared with a copy after the call.
WATCHED = 1 << 16


def run_cases(pairs: Iterable[tuple[Case, Mode]], subject: Subject) -> Iterator[Result]:
    """The verdict on each case in each mode."""
    for case, mode in pairs:
        yield run_case(case, replace(subject, mode=mode))


def run_case(case: Case, subject: Subject) -> Result:
    """The verdict on one case."""
    case = fitted(case, subject.implementation)
    result, call = Result(case.id, case.feature, subject.mode.name, Verdict.MATCHES), case.build()
    implementation, lacking = subject.implementation, subject.lacking(case)

    def refused(detail: str) -> Result:
        return replace(result, verdict=Verdict.REFUSES, detail=detail)

    def failed(verdict: Verdict, detail: str, units: float = 0.0) -> Result:
        return replace(result, verdict=verdict, detail=detail, units=units, repro=snippet(case, call, subject, detail))

    arguments = frozenset(call.options) | frozenset(call.arrays())
    unknown = implementation.unknown(arguments)
    if unknown:
        return refused(f"has no option {', '.join(sorted(unknown))}")
    away = implementation.declares_away(case.needs) if case.raises is None else frozenset[str]()
    if away:
        return refused(f"declared without {', '.join(sorted(away))}")
    copies = {name: array.tobytes() for name, array in call.all_arrays().items() if array.size <= WATCHED}
    try:
        finding = _judge(case, call, subject)
    except WrongAnswer as wrong:
        finding = Finding(str(wrong))
    except Unsupported as reason:
        return refused(str(reason))
    except (SystemExit, KeyboardInterrupt) as end:
        if isinstance(end, KeyboardInterrupt) and _may_be_ctrl_c():
            raise
        return failed(Verdict.CRASHED, f"{type(end).__name__}: {end}, raised by the implementation, ends its caller")
    except Exception as caught:
        error = subject.untraced_error(call, case.quantity) or caught
        text = f"{type(error).__name__}: {error}"
        if case.raises is not None and not implementation.own_errors:  # under a trace too, any error does
            return result
        if lacking and (not implementation.own_errors or "UnixentError" in _family(error)):
            return refused(f"declared without {', '.join(sorted(lacking))}: {error}")
        if implementation.options is None and isinstance(error, TypeError) and _unexpected(error) in arguments:
            return refused(f"has no option {_unexpected(error)}")
        no_rule = _may_lack_rule(subject, case) and subject.harness.has_no_rule(caught, subject.mode)
        if no_rule or any(issubclass(cls, implementation.refusals) for cls in subject.harness.raised(error)):
            return refused(text)
        return failed(Verdict.CRASHED, text)
    finding = finding or _written_to(call, copies)
    if finding is None:
        return result
    if "batch_invariant" in lacking:
        return refused(f"declared not batch invariant: {finding.detail}")
    if finding.units <= 1:
        return replace(result, units=finding.units)
    if isinstance(finding, WrongError) and lacking:  # it said no before it looked closer
        return refused(f"declared without {', '.join(sorted(lacking))}: {finding.detail}")
    verdict = Verdict.CRASHED if isinstance(finding, WrongError) else Verdict.WRONG
    return failed(verdict, finding.detail, finding.units)


class WrongError(Finding):
    """An error was due and another came."""


def _judge(case: Case, call: Call, subject: Subject) -> Finding | None:
    if case.property is not None:
        return case.property(subject, call)
    if case.raises is not None and not subject.mode.traced:
        return _judge_error(case, call, subject, case.raises)
    if not subject.judges:
        subject.answer(call, case.quantity)
        return None
    parts = expected_of(case, call)
    answers = subject.answer(call, case.quantity)
    comparisons = [(part, part.compare(got)) for part, got in zip(parts, answers, strict=True)]
    part, worst = max(comparisons, key=lambda pair: np.nan_to_num(pair[1].units, nan=np.inf))
    if worst.ok:
        return Finding("", worst.units)
    if worst.reason:
        return Finding(worst.reason)
    where = f" at {worst.index}" if worst.index else ""
    detail = f"{part.name}{where}: got {worst.got!r}, expected {worst.expected!r} +- {worst.bound:.3g}"
    return Finding(detail + f" ({worst.units:.3g} times the bound)", worst.units)


def _judge_error(case: Case, call: Call, subject: Subject, due: Raises) -> Finding | None:
    try:
        subject.answer(call, case.quantity)
    except (Unsupported, WrongAnswer):
        raise
    except Exception as error:
        if not subject.implementation.own_errors:
            return None
        text = f"{type(error).__name__}: {error}"
        if not {due.error, "UnixentError"} <= _family(error):
            return WrongError(f"expected {due.error} about {due.argument}; got {text}")
        missing = [word for word in due.mentions if word not in str(error)]
        if not any(name in str(error) for name in subject.names_of(due.argument)):
            missing = [due.argument, *missing]
        return WrongError(f"the text of {text!r} does not name {', '.join(missing)}") if missing else None
    return Finding(f"expected {due.error} about {due.argument}; nothing was raised")


def _may_be_ctrl_c() -> bool:
    """Whether a signal has a handler that raises KeyboardInterrupt: none has one in a worker, whose parent ends it."""
    return any(callable(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))


def _may_lack_rule(subject: Subject, case: Case) -> bool:
    """Whether a transform is asked for that nobody declared, so that the framework's own refusal of it stands. What is
    declared of transforms is said of the loss of logits, not of a fused linear form."""
    asked = any(need.startswith("transform:") for need in case.needs | subject.mode.needs)
    return asked and (subject.implementation.capabilities is None or "linear" in case.needs)


def _unexpected(error: TypeError) -> str:
    """The keyword that Python says a function does not take, where its signature takes any and another's does not."""
    match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return match[1] if match else ""


def _family(error: Exception) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _written_to(call: Call, copies: dict[str, bytes]) -> Finding | None:
    for name, before in copies.items():
        if call.all_arrays()[name].tobytes() != before:
            return Finding(f"{name} was written to")
    return None
