"""One self-contained HTML page.

Of one implementation: its verdict, the worst failures, a table of its features, what was not judged. Of several:
features by implementations, each cell opening to its cases; and what differs.

The page is `page.html` with the style, the script and the data put in. It needs no network and no server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from importlib import metadata, resources
from typing import Any

from unixent_conformance.dialects import BY_NAME
from unixent_conformance.results import Report, Result, Verdict

ORDER = (Verdict.MATCHES, Verdict.DIALECT, Verdict.REFUSES, Verdict.WRONG, Verdict.CRASHED)

# Cases of one verdict in one cell are alike: this many keep their own text and lines to paste, all keep id and error.
TEXTS, REPROS = 12, 2


class Table:
    """Strings, each once."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.index.setdefault(text, len(self.index))


def to_html(reports: Sequence[Report], title: str = "Conformance") -> str:
    """The page over one or more reports."""
    page = _read("page.html")
    # The only sequence that could end the script element early.
    data = json.dumps(page_data(reports, title), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    parts = {"title": escape(title), "style": _read("page.css"), "script": _read("page.js"), "data": data}
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text)
    return page


def _definition() -> str:
    """The address of the definition that judges, or "" where the project that is installed has none."""
    with suppress(metadata.PackageNotFoundError):
        for url in metadata.metadata("unixent").get_all("Project-URL") or []:
            label, _, address = url.partition(", ")
            if label == "Documentation":
                return f"{address.rstrip('/')}/semantics.html"
    return ""


def page_data(reports: Sequence[Report], title: str) -> dict[str, Any]:
    """What the script reads. A case is [id, units, mode, text or -1, repro or -1], strings as their indices."""
    strings, features = Table(), Table()
    implementations = []
    for report in reports:
        cells = {
            features(feature): [_group(key, alike, strings) for key, alike in _alike(results).items()]
            for feature, results in report.by_feature().items()
        }
        implementations.append(
            {
                **{name: getattr(report, name) for name in ("framework", "version", "date", "machine", "stopped")},
                "name": report.implementation,
                "left_out": list(report.left_out),
                "judged": report.judged,
                "cells": cells,
                "failures": [_failure(group, features, strings) for group in _worst_first(report)],
                "refused": [
                    [len(alike), strings(reason) if reason else -1, _features(alike, features)]
                    for reason, alike in _refusals(report)
                ],
            }
        )
    named = {name for report in reports for name in report.dialects}
    return {
        "title": title,
        "definition": _definition(),
        "verdicts": [verdict.value for verdict in ORDER],
        "features": list(features.index),
        "implementations": implementations,
        "dialects": {
            name: {"formula": dialect.formula, "advice": dialect.advice, "hazard": dialect.hazard}
            for name, dialect in BY_NAME.items()
            if name in named
        },
        "strings": list(strings.index),
    }


def _alike(results: Sequence[Result]) -> dict[tuple[Verdict, tuple[str, ...]], list[Result]]:
    """Results by verdict and dialects, in the order of the legend."""
    groups: dict[tuple[Verdict, tuple[str, ...]], list[Result]] = {}
    for result in sorted(results, key=lambda r: ORDER.index(r.verdict)):
        groups.setdefault((result.verdict, result.dialects), []).append(result)
    return groups


def _group(key: tuple[Verdict, tuple[str, ...]], alike: Sequence[Result], strings: Table) -> dict[str, Any]:
    verdict, dialects = key
    cases = []
    for n, result in enumerate(alike):
        # The reasons of refusals repeat, and take up room once; every other text has numbers of its own.
        cases.append(_case(result, strings, verdict is Verdict.REFUSES or n < TEXTS, n < REPROS))
    return {"verdict": ORDER.index(verdict), "dialects": list(dialects), "cases": cases}


def _case(result: Result, strings: Table, text: bool = True, repro: bool = True) -> list[Any]:
    units = float(f"{result.units:.2g}") if math.isfinite(result.units) else None
    said = strings(result.detail) if result.detail and text else -1
    return [
        strings(result.id),
        units,
        strings(result.mode),
        said,
        strings(result.repro) if result.repro and repro else -1,
    ]


def _worst_first(report: Report) -> list[list[Result]]:
    """The groups of failures: silent errors by their size, then crashes by how many there are."""

    def gravity(group: list[Result]) -> tuple[float, ...]:
        units = max(math.inf if math.isnan(result.units) else result.units for result in group)
        return (1, units, len(group)) if group[0].verdict is Verdict.WRONG else (0, len(group))

    return sorted(report.failure_groups, key=gravity, reverse=True)


def _failure(group: Sequence[Result], features: Table, strings: Table) -> list[Any]:
    """Verdict, number of cases, features, and the case that is furthest off."""
    worst = max(group, key=lambda result: math.inf if math.isnan(result.units) else result.units)
    return [ORDER.index(worst.verdict), len(group), _features(group, features), _case(worst, strings)]


def _refusals(report: Report) -> list[tuple[str, list[Result]]]:
    """What was refused, by what was said, the most frequent first."""
    reasons: dict[str, list[Result]] = {}
    for result in report.cases:
        if result.verdict is Verdict.REFUSES:
            reasons.setdefault(result.detail, []).append(result)
    return sorted(reasons.items(), key=lambda pair: -len(pair[1]))


def _features(results: Sequence[Result], features: Table) -> list[int]:
    return [features(name) for name in dict.fromkeys(result.feature for result in results)]


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
