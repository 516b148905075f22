"""Which convention an answer follows where it is not ours.

Each dialect is a formula, so a wrong answer is put to the same test as a right one: the oracle under that formula, the
same error model. An answer that no formula here explains stays silently wrong. Sets of dialects are tried from the
smallest on, since one function can have several (a mean over all positions *and* a result in float32). A set explains
an answer only with every part of it: loss and gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from unixent_conformance import expect, oracle, tolerance
from unixent_conformance.cases.model import Call, Case
from unixent_conformance.dialects.model import Dialect
from unixent_conformance.dialects.table import ACCURACY, DIALECTS, UNCHECKED
from unixent_conformance.expect import Part
from unixent_conformance.harness import Unsupported
from unixent_conformance.oracle import Array, Rows
from unixent_conformance.results import Result, Verdict
from unixent_conformance.runner import Subject, WrongAnswer, ask

# More at once than this explains anything.
MOST = 3

BY_NAME = {dialect.name: dialect for dialect in (*DIALECTS, *ACCURACY, UNCHECKED)}


def explain(result: Result, case: Case, subject: Subject) -> Result:
    """The result, as a dialect if the formulas of one or more explain the answer."""
    if result.verdict is not Verdict.WRONG or case.holds is not None:
        return result
    if case.raises is not None and case.raises.error != "TargetRangeError":
        return _spoken(result, ((UNCHECKED.name,),))
    call = case.build()
    try:
        answers = ask(case, call, subject)
    except (Unsupported, WrongAnswer):
        return result
    found = tuple(_explanations(call, case, answers))
    return _spoken(result, found) if found else result


def _spoken(result: Result, found: tuple[tuple[str, ...], ...]) -> Result:
    names = " and ".join(found[0])
    return replace(
        result, verdict=Verdict.DIALECT, dialects=found[0], candidates=found, detail=f"{names}: {result.detail}"
    )


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


def _explanations(call: Call, case: Case, answers: tuple[Array, ...]) -> Iterator[tuple[str, ...]]:
    """The smallest sets of dialects that explain the answers, all of one size."""
    possible = _telling(call, case)
    digits = ACCURACY[:1] if call.linear else ACCURACY
    accuracies = [None, *(dialect for dialect in digits if dialect.applies(call, case))]
    for size in range(MOST + 1):
        for accuracy in accuracies:
            if size + (accuracy is not None) == 0:
                continue
            fits = [
                tuple(dialect.name for dialect in (*chosen, *([accuracy] if accuracy else [])))
                for chosen in combinations(possible, size)
                if len({dialect.topic for dialect in chosen}) == size and _fits(call, case, answers, chosen, accuracy)
            ]
            if fits:
                yield from fits
                return


def _telling(call: Call, case: Case) -> list[Dialect]:
    """The dialects that this case can tell from ours, or from a call in which no index is ignored."""
    if call.linear:  # its inputs are no logits; the other dialects show when it is seen as a loss of logits
        return [d for d in DIALECTS if d.topic in ("empty mean", "infinities") and d.applies(call, case)]
    possible = [dialect for dialect in DIALECTS if dialect.applies(call, case)]
    grounds: list[list[Dialect]] = [[], *([dialect] for dialect in possible if dialect.topic == "ignore_index")]
    plain = [expected(call, case, ground) for ground in grounds]
    return [
        dialect
        for dialect in possible
        if case.raises is not None
        or any(
            not _same(parts, expected(call, case, [*ground, dialect]))
            for ground, parts in zip(grounds, plain, strict=True)
            if dialect not in ground
        )
    ]


def _seen(rows: Rows, call: Call, dialects: Sequence[Dialect]) -> Rows:
    for dialect in dialects:
        rows = dialect.rows(rows, call)
    return rows


def _same(ours: Sequence[Part], theirs: Sequence[Part]) -> bool:
    return all(
        a.dtype == b.dtype and np.array_equal(a.estimate.value, b.estimate.value, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def _fits(
    call: Call, case: Case, answers: tuple[Array, ...], chosen: Sequence[Dialect], accuracy: Dialect | None
) -> bool:
    dialects = [*chosen, *([accuracy] if accuracy else [])]
    parts = expected(call, case, dialects)
    return all(part.compare(got).ok for part, got in zip(parts, answers, strict=True))


def expected(call: Call, case: Case, dialects: Sequence[Dialect]) -> list[Part]:
    """What `expect.expected` says, under other formulas."""
    spoken = call
    for dialect in dialects:
        spoken = dialect.call(spoken)
    if case.asks == "second derivatives":
        return expect.second(spoken, lambda rows: _seen(rows, call, dialects))
    if call.linear:
        return expect.linear(spoken, case.asks != "loss", lambda rows: _seen(rows, call, dialects))
    options = {name: spoken.options[name] for name in _ROW_OPTIONS if name in spoken.options}
    rows = oracle.solve(spoken.logits, spoken.target, weight=spoken.weight, mask=spoken.mask, **options)
    rows = _seen(rows, spoken, dialects)
    narrow, result = call.acc_dtype, call.result_dtype
    for dialect in dialects:
        narrow, result = dialect.narrow(call, narrow), dialect.result(call, result)
    reduction = str(spoken.options.get("reduction", "mean"))
    on_empty = str(spoken.options.get("on_empty", "zero"))
    reduced = oracle.reduce(rows, reduction, spoken.options.get("normalizer"), on_empty)
    value = Part("loss", tolerance.loss(rows, reduced, reduction, narrow), result)
    if case.asks == "loss":
        return [value]
    if case.asks == "terms":
        return [
            Part("numerator", tolerance.numerator(rows, reduced, narrow), result),
            Part("denominator", tolerance.denominator(rows, reduced, narrow), result),
        ]
    upstream = None if call.upstream is None else np.asarray(call.upstream)
    if case.asks == "logits gradient":
        return [
            value,
            Part("gradient of logits", tolerance.logits_gradient(rows, reduced, upstream, narrow), call.dtype),
        ]
    gradient = tolerance.target_gradient(rows, reduced, upstream, narrow)
    return [value, Part("gradient of target", gradient, call.target.dtype.name)]


_ROW_OPTIONS = ("axis", "ignore_index", "label_smoothing", "z_loss", "softcap")
