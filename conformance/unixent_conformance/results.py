"""What a run gives: a verdict on every case, the report of an implementation, the agreement of several.

All of it is plain data and goes to JSON and back, from one process or machine to another.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations
from typing import Any

# Of the JSON forms.
VERSION = 1

Pair = tuple[str, str]


class Verdict(str, Enum):
    """One of five, as `runner` explains them."""

    MATCHES = "matches"
    DIALECT = "dialect"
    REFUSES = "refuses"
    WRONG = "silently wrong"
    CRASHED = "crashed"

    @property
    def ok(self) -> bool:
        return self not in (Verdict.WRONG, Verdict.CRASHED)


@dataclass(frozen=True)
class Result:
    """One case under one mode. `units` is the largest error in units of its bound; `dialects` names the conventions
    under which the answer is right, where it is a dialect; `candidates` are all the sets of names that explain it.
    `repro` are lines to paste that reproduce a failure."""

    id: str
    feature: str
    mode: str
    verdict: Verdict
    detail: str = ""
    units: float = 0.0
    repro: str = ""
    dialects: tuple[str, ...] = ()
    candidates: tuple[tuple[str, ...], ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Strings, numbers and lists that JSON can hold; what is at its default is left out."""
        record = {**vars(self), "verdict": self.verdict.value, "units": _finite_or_text(self.units)}
        return {name: value for name, value in record.items() if value}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Result:
        """The result of a record.

        >>> worst = Result("a/b/value", "a", "eager", Verdict.WRONG, "7, not 2", float("inf"))
        >>> Result.from_record(worst.to_record()) == worst
        True
        """
        parsed: dict[str, Any] = {
            "verdict": Verdict(record["verdict"]),
            "units": float(record.get("units", 0.0)),
            "dialects": tuple(record.get("dialects", ())),
            "candidates": tuple(tuple(names) for names in record.get("candidates", ())),
        }
        return cls(**{**record, **parsed})


@dataclass(frozen=True)
class Report:
    """The verdicts of one implementation; `unixent_conformance.report` writes it as JUnit, Markdown and HTML.

    ok: something matches, nothing is silently wrong, nothing crashed. counts: how many cases got each verdict. cases: a
    `Result` each, with id, feature, mode, verdict, detail, units (the largest error over its bound) and repro (lines to
    paste). left_out: what a larger run would ask too, a line each. date: when it ended, in UTC. machine: where.
    stopped: what ended it before its last case, empty if nothing did. seconds: how long it took.
    """

    implementation: str
    framework: str
    version: str
    cases: tuple[Result, ...]
    left_out: tuple[str, ...] = ()
    date: str = field(default="", compare=False)
    machine: str = ""
    stopped: str = ""
    seconds: float = field(default=0.0, compare=False)

    @property
    def ok(self) -> bool:
        return not self.stopped and not self.failures and self.counts[Verdict.MATCHES] > 0

    @property
    def failures(self) -> tuple[Result, ...]:
        """What is silently wrong or crashed."""
        return tuple(result for result in self.cases if not result.verdict.ok)

    @property
    def failure_groups(self) -> list[list[Result]]:
        """The failures that tell of different faults: what is wrong in one feature, or one error wherever it comes."""
        groups: dict[tuple[Verdict, str], list[Result]] = {}
        for result in self.failures:
            alike = result.detail if result.verdict is Verdict.CRASHED else result.feature
            groups.setdefault((result.verdict, alike), []).append(result)
        return list(groups.values())

    @property
    def judged(self) -> dict[str, int]:
        """By mode, how many cases were called and judged: all but those that were refused."""
        modes = Counter({result.mode: 0 for result in self.cases})
        modes.update(result.mode for result in self.cases if result.verdict is not Verdict.REFUSES)
        return dict(modes)

    @property
    def counts(self) -> dict[Verdict, int]:
        counter = Counter(result.verdict for result in self.cases)
        return {verdict: counter[verdict] for verdict in Verdict}

    @property
    def dialects(self) -> dict[str, int]:
        """The dialects that answers follow, and in how many cases."""
        return dict(Counter(name for result in self.cases for name in result.dialects).most_common())

    def by_feature(self) -> dict[str, tuple[Result, ...]]:
        features = dict.fromkeys(result.feature for result in self.cases)
        return {name: tuple(r for r in self.cases if r.feature == name) for name in features}

    def to_json(self) -> str:
        """`version` of this form, what was tested, `ok`, `counts`, `dialects`, and the `cases`."""
        return json.dumps(
            {
                "version": VERSION,
                "implementation": self.implementation,
                "framework": self.framework,
                "environment": self.version,
                "date": self.date,
                "machine": self.machine,
                "stopped": self.stopped,
                "seconds": self.seconds,
                "ok": self.ok,
                "counts": {verdict.value: n for verdict, n in self.counts.items()},
                "dialects": self.dialects,
                "left_out": list(self.left_out),
                "cases": [result.to_record() for result in self.cases],
            },
            ensure_ascii=False,
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote, of this run or another machine's; ValueError where it is none."""
        try:
            data = json.loads(text)
            if data["version"] != VERSION:
                raise ValueError(f"expected a report of version {VERSION}; got {data['version']}")
            cases = tuple(Result.from_record(record) for record in data["cases"])
            left_out = tuple(data.get("left_out", ()))
            about = {name: data[name] for name in ("date", "machine", "stopped", "seconds") if name in data}
            return cls(data["implementation"], data["framework"], data["environment"], cases, left_out, **about)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no report of unixent conformance: {error}") from error


@dataclass(frozen=True)
class Difference:
    """How far apart two implementations are in a case: `units` of the sum of their bounds, 1 at the most where they
    agree; `detail` says where they do not."""

    id: str
    feature: str
    pair: Pair
    units: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.units <= 1


@dataclass(frozen=True)
class Agreement:
    """What several implementations make of the same cases.

    names: the implementations. versions: what ran them, by name. cases: how many cases each was given, by name; fewer
    than the others' where a case is expensive. differences: one for each case and pair in which both gave an answer.
    """

    names: tuple[str, ...]
    versions: dict[str, str]
    cases: dict[str, int]
    differences: tuple[Difference, ...]

    @property
    def disagreements(self) -> list[Difference]:
        return [difference for difference in self.differences if not difference.ok]

    @property
    def ok(self) -> bool:
        return not self.disagreements

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return tuple(combinations(self.names, 2))

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(difference.feature for difference in self.differences))

    def of(self, pair: Pair, feature: str | None = None) -> list[Difference]:
        """The differences of a pair, in one feature if it is given."""
        return [d for d in self.differences if d.pair == pair and feature in (None, d.feature)]

    def largest(self, pair: Pair, feature: str | None = None) -> Difference | None:
        """The largest of them; None where there is none, as between two that both refuse."""
        return max(self.of(pair, feature), key=lambda difference: difference.units, default=None)

    def to_json(self) -> str:
        """`version` of this form, who was compared, `ok`, the largest differences by feature, the disagreements."""
        worst = [self.largest(pair, feature) for feature in self.features for pair in self.pairs]
        return json.dumps(
            {
                "version": VERSION,
                "implementations": list(self.names),
                "environments": self.versions,
                "cases": self.cases,
                "compared": [{"pair": list(pair), "cases": len(self.of(pair))} for pair in self.pairs],
                "ok": self.ok,
                "largest": _records(difference for difference in worst if difference is not None),
                "disagreements": _records(self.disagreements),
            },
            ensure_ascii=False,
            indent=1,
        )


def plural(n: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "case"), plural(2, "case")
    ('1 case', '2 cases')
    """
    return f"{n} {noun}{'s'[: n != 1]}"


def _records(differences: Iterable[Difference]) -> list[dict[str, Any]]:
    records = [{**vars(d), "pair": list(d.pair), "units": _finite_or_text(d.units)} for d in differences]
    return [{name: value for name, value in record.items() if name != "detail" or value} for record in records]


def _finite_or_text(units: float) -> float | str:
    """JSON has no infinity and no NaN: "inf", "nan"."""
    return units if math.isfinite(units) else str(units)
