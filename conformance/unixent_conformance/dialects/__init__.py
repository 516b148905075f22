"""Which convention an answer follows where it is not ours.

Each dialect is a formula, so a wrong answer is put to the same test as a right one: the oracle under that formula, the
same error model. An answer that no formula here explains stays silently wrong. Two dialects are tried together where
none does alone, since one function can have several (a mean over all positions *and* a result in float32); more would
explain what is merely near. Dialects explain an input, not a question about it: where the value was asked for, the
gradient is asked for too, and both must follow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations

from unixent_conformance.dialects import infinities, positions, table
from unixent_conformance.dialects.accuracy import ACCURACY
from unixent_conformance.dialects.model import Dialect
from unixent_conformance.dialects.probes import denied, same_parts
from unixent_conformance.dialects.table import UNCHECKED
from unixent_conformance.expected import Part, expected
from unixent_conformance.harness import Unsupported
from unixent_conformance.model import Array, Call, Case, Quantity
from unixent_conformance.results import Result, Verdict
from unixent_conformance.returned import WrongAnswer
from unixent_conformance.under_test import Subject

# More at once than this explains anything.
MOST = 2

# The topic of the errors that are due at values.
ABOUT = {"TargetRangeError": "out of range", "EmptyMeanError": "empty mean"}

# What is asked of an input, and what came.
Answers = dict[Quantity, tuple[Array, ...]]

# Whose first part is the loss.
WITH_LOSS: tuple[Quantity, ...] = ("logits gradient", "target gradient", "linear gradients")

DIALECTS = (*table.DIALECTS, *infinities.DIALECTS, *positions.DIALECTS)
BY_NAME = {dialect.name: dialect for dialect in (*DIALECTS, *ACCURACY, UNCHECKED)}


def explain(result: Result, case: Case, subject: Subject) -> Result:
    """The result, as a dialect if the formulas of one or more explain the answer."""
    if result.verdict is not Verdict.WRONG:
        return result
    if case.property is not None:
        candidates = _too_few_digits(case, subject)
        return _explained(result, candidates) if candidates else result
    if case.raises is not None and not case.raises.about_values:
        return _explained(result, ((UNCHECKED.name,),))
    call = case.build()
    try:
        answers: Answers = {case.quantity: subject.answer(call, case.quantity)}
    except (Unsupported, WrongAnswer):
        return result
    if case.quantity == "loss":
        gradients: Quantity = "linear gradients" if call.linear else "logits gradient"
        with suppress(Exception):  # one that cannot be had is judged by its own case
            answers[gradients] = subject.answer(call, gradients)
    candidates = tuple(_explanations(call, case, answers, subject))
    return _explained(result, candidates) if candidates else result


def _too_few_digits(case: Case, subject: Subject) -> tuple[tuple[str, ...], ...]:
    """The mildest accuracy that each answer which a property compares has by itself."""
    calls = case.compared(case.build()) if case.compared else ()
    try:
        answers: list[Answers] = [{"logits gradient": subject.answer(call, "logits gradient")} for call in calls]
    except (Unsupported, WrongAnswer):
        return ()
    asked = [(Formulas(call), answer) for call, answer in zip(calls, answers, strict=True)]
    for dialect in ACCURACY:
        applies = all(_can_tell(dialect, call, case) for call in calls)
        if asked and applies and all(formulas.explain(answer, (dialect,)) for formulas, answer in asked):
            return ((dialect.name,),)
    return ()


def _explained(result: Result, candidates: tuple[tuple[str, ...], ...]) -> Result:
    names, detail = candidates[0], f"{' and '.join(candidates[0])}: {result.detail}"
    return replace(result, verdict=Verdict.DIALECT, dialects=names, candidates=candidates, detail=detail)


def settle(results: Sequence[Result]) -> tuple[Result, ...]:
    """One explanation for each dialect: of several that fit a case, the one whose names fit most cases of the run."""
    support = Counter(name for r in results for name in {name for names in r.candidates for name in names})
    settled = []
    for r in results:
        if r.candidates:
            best = max(r.candidates, key=lambda names: (-len(names), min(support[name] for name in names)))
            detail = r.detail.removeprefix(" and ".join(r.dialects))
            r = replace(r, dialects=best, candidates=(), detail=" and ".join(best) + detail)
        settled.append(r)
    return tuple(settled)


@dataclass(frozen=True)
class Formulas:
    """What is expected of an input under sets of dialects, each computed once."""

    call: Call
    known: dict[tuple[Quantity, tuple[str, ...]], list[Part]] = field(default_factory=dict)

    def of(self, quantity: Quantity, dialects: Sequence[Dialect]) -> list[Part]:
        names = tuple(dialect.name for dialect in dialects)
        for gradients in WITH_LOSS if quantity == "loss" else ():
            if (gradients, names) in self.known:
                return self.known[gradients, names][:1]
        if (quantity, names) not in self.known:
            self.known[quantity, names] = expected(self.call, quantity, dialects)
        return self.known[quantity, names]

    def explain(self, answers: Answers, dialects: Sequence[Dialect]) -> bool:
        """Whether the answers are these formulas'; where the losses are not, no gradient is computed."""
        losses: list[tuple[Quantity, tuple[Array, ...]]] = [
            ("loss", answer[:1]) for quantity, answer in answers.items() if quantity in WITH_LOSS
        ]
        return all(
            part.compare(got).ok
            for quantity, answer in (*losses, *answers.items())
            for part, got in zip(self.of(quantity, dialects), answer, strict=True)
        )


def _explanations(call: Call, case: Case, answers: Answers, subject: Subject) -> Iterator[tuple[str, ...]]:
    """The smallest sets of dialects that explain the answers, all of one size."""
    formulas = Formulas(call)
    asked = list(answers)[-1]  # the value comes with the gradient
    possible = _telling(formulas, case, asked)
    digits = ACCURACY[:1] if call.linear else ACCURACY
    accuracies: list[tuple[Dialect, ...]] = [(), *((dialect,) for dialect in digits if _can_tell(dialect, call, case))]
    refuted: list[list[Part]] = []  # what else says the same of this input is no better
    for size in range(MOST + 1):
        for accuracy in accuracies:
            # Digits alone are no reason for an error that is due and does not come.
            if not 0 < size + len(accuracy) <= MOST or (not size and case.raises is not None):
                continue
            fits = [
                (*chosen, *accuracy)
                for chosen in combinations(possible, size)
                if len({d.topic for d in chosen}) == size and formulas.explain(answers, (*chosen, *accuracy))
            ]
            fits = [fit for fit in fits if not any(same_parts(formulas.of(asked, fit), parts) for parts in refuted)]
            confirmed = [fit for fit in fits if not any(denied(dialect, call, case, subject) for dialect in fit)]
            if confirmed:
                yield from (tuple(dialect.name for dialect in fit) for fit in confirmed)
                return
            refuted += [formulas.of(asked, fit) for fit in fits]


def _telling(formulas: Formulas, case: Case, quantity: Quantity) -> list[Dialect]:
    """The dialects that this case can tell from ours, or from a call in which no index is ignored."""
    call = formulas.call
    if call.linear:  # its inputs are no logits; the other dialects show when it is seen as a loss of logits
        return [d for d in DIALECTS if d.topic in ("empty mean", "infinities") and _can_tell(d, call, case)]
    possible = [dialect for dialect in DIALECTS if _can_tell(dialect, call, case)]
    grounds: list[list[Dialect]] = [[], *([dialect] for dialect in possible if dialect.topic == "ignore_index")]
    topic = None if case.raises is None else ABOUT[case.raises.error]
    without = [formulas.of(quantity, ground) for ground in grounds]
    return [
        dialect
        for dialect in possible
        if dialect.topic == topic
        or any(
            not same_parts(parts, formulas.of(quantity, [*ground, dialect]))
            for ground, parts in zip(grounds, without, strict=True)
            if dialect not in ground
        )
    ]


def _can_tell(dialect: Dialect, call: Call, case: Case) -> bool:
    return dialect.is_about(call) and dialect.applies(call, case)
