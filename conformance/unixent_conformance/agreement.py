"""Do several implementations give the same answer? Every case of the catalogue through all of them, in one process.

Two honest answers lie within the error model's bound of the exact value, so they differ by at most the sum of their two
bounds. A difference is counted in units of that sum, entry by entry; beyond 1 the two disagree. What the definition
leaves no room in must be the same: shapes and dtypes, NaN and infinities, zeros that nothing comes to, the class and
the text of an error, whether a property holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from unixent_conformance import tolerance
from unixent_conformance.api import find_tested
from unixent_conformance.cases import catalogue
from unixent_conformance.expected import Part, expected_of
from unixent_conformance.harness import EAGER, Unsupported
from unixent_conformance.model import Array, Case, Tier
from unixent_conformance.results import Agreement, Difference, Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.selection import applies
from unixent_conformance.tolerance import Comparison, Format
from unixent_conformance.under_test import Subject


def compare(
    implementations: Sequence[Any],
    *,
    features: Sequence[str] | None = None,
    quick: bool = False,
    thorough: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Run the catalogue, eagerly, through every one of `implementations`, and compare each pair.

    implementations: what `run` takes, two or more: backends by name, "module:function", callables.
    features, quick: as for `run`. thorough: every case through every framework, also where each is a compilation.
    progress: called with (done, of how many) after each case.

    >>> import unixent
    >>> from unixent_conformance import compare
    >>> agreement = compare(["numpy", unixent.cross_entropy], features=["z-loss"], quick=True)
    >>> agreement.ok, len(agreement.of(agreement.pairs[0]))
    (True, 10)
    """
    subjects = [_subject(given, thorough) for given in implementations]
    chosen = catalogue(Tier.QUICK if quick else Tier.FULL, features=features or ())
    names = tuple(subject.implementation.name for subject in subjects)
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"compare: expected two or more different implementations; got {', '.join(names) or 'none'}")
    differences: list[Difference] = []
    for done, case in enumerate(chosen, 1):
        differences += _differences(case, [subject for subject in subjects if applies(case, subject.mode)])
        if progress is not None:
            progress(done, len(chosen))
    versions = {name: subject.harness.version() for name, subject in zip(names, subjects, strict=True)}
    cases = {n: sum(applies(case, s.mode) for case in chosen) for n, s in zip(names, subjects, strict=True)}
    return Agreement(names, versions, cases, tuple(differences))


@dataclass(frozen=True)
class Refused:
    """Said that it cannot, as it had declared."""


@dataclass(frozen=True)
class Raised:
    """An error; one that is not unixent's own is like any other."""

    text: str
    own: bool

    def __str__(self) -> str:
        return self.text


# Arrays, an error, or what became of a property.
Answer = tuple[Array, ...] | Raised | str | Refused


def _subject(given: Any, thorough: bool) -> Subject:
    implementation, harness = find_tested(given)
    mode = next((mode for mode in harness.modes if mode.name == EAGER.name), EAGER)
    return Subject(harness, implementation, mode.thorough() if thorough else mode)


def _differences(case: Case, subjects: Sequence[Subject]) -> list[Difference]:
    """One case through all of them: at most as many differences as pairs."""
    answers = {s.implementation.name: _answer(case, s) for s in subjects}
    given = {name: answer for name, answer in answers.items() if not isinstance(answer, Refused)}
    parts: Sequence[Part] = ()
    if sum(isinstance(answer, tuple) for answer in given.values()) > 1:
        call = case.build()
        parts = expected_of(case, call)
    return [
        Difference(case.id, case.feature, (one, other), *_apart(one, given[one], other, given[other], parts))
        for one, other in combinations(given, 2)
    ]


def _answer(case: Case, subject: Subject) -> Answer:
    if case.property is not None:
        result = run_case(case, subject)
        return Refused() if result.verdict is Verdict.REFUSES else result.detail or "holds"
    call, implementation = case.build(), subject.implementation
    if implementation.unknown(frozenset(call.options) | frozenset(call.arrays())):
        return Refused()
    try:
        return subject.answer(call, case.quantity)
    except Unsupported:
        return Refused()
    except Exception as error:
        if case.raises is None and subject.lacking(case):
            return Refused()
        return Raised(f"{type(error).__name__}: {error}", implementation.own_errors)


def _apart(one: str, first: Answer, other: str, second: Answer, parts: Sequence[Part]) -> tuple[float, str]:
    """Units and detail of a difference."""
    if not isinstance(first, tuple) or not isinstance(second, tuple):
        errors = [answer for answer in (first, second) if isinstance(answer, Raised)]
        if (len(errors) == 2 and not all(error.own for error in errors)) or first == second:
            return 0.0, ""
        said = ["an answer" if isinstance(answer, tuple) else str(answer) for answer in (first, second)]
        return float("inf"), f"{one}: {said[0]}; {other}: {said[1]}"
    differences = [between(a, b, part) for a, b, part in zip(first, second, parts, strict=True)]
    worst = max(range(len(differences)), key=lambda i: differences[i].units)
    if differences[worst].ok:
        return differences[worst].units, ""
    part, at = parts[worst], differences[worst]
    if at.reason:
        return at.units, f"{part.name}: {one} and {other} give {at.reason}"
    said = [
        f"{name} {got!r} ({part.compare(answer[worst]).units:.2g} bounds from the truth)"
        for name, got, answer in ((one, at.got, first), (other, at.expected, second))
    ]
    return at.units, f"{part.name}{f' at {at.index}' if at.index else ''}: {said[0]}, {said[1]}"


def between(one: Array, other: Array, part: Part) -> Comparison:
    """The entry in which two answers differ most, in units of the sum of their two bounds."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return Comparison(float("inf"), (), 0.0, 0.0, 0.0, f"{one.dtype} {one.shape} and {other.dtype} {other.shape}")
    if one.dtype.kind in "ib":
        return Comparison.worst(np.where(one == other, 0, np.inf), one, other, np.zeros(one.shape))
    value = np.broadcast_to(part.estimate.value, one.shape).astype(np.longdouble)
    bound = np.broadcast_to(part.estimate.bound, one.shape).astype(np.longdouble)
    form = Format.of(part.dtype)
    with np.errstate(all="ignore"):
        reach = abs(value) + bound
        allowed = 2 * (bound + tolerance.rounding(reach, part.dtype))
        # Where rounding may make an infinity of a finite truth, that counts as the next number past the largest.
        past = np.where(reach >= form.largest * (1 + form.roundoff / 2), form.largest * (1 + 2 * form.roundoff), np.inf)
        a, b = (np.where(np.isfinite(value), x.astype(np.longdouble).clip(-past, past), x) for x in (one, other))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        exact = ~np.isfinite(value) | ((value == 0) & (bound == 0))
        units = np.where(same, 0, np.where(exact, np.inf, np.nan_to_num(abs(a - b) / allowed, nan=np.inf)))
    return Comparison.worst(units, one, other, allowed)
