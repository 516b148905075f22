"""One self-contained HTML page: features by implementations, each cell opening to its cases; and what differs.

The page is `page.html` with the style, the script and the data put in. It needs no network and no server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
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
            {"name": report.implementation, "framework": report.framework, "version": report.version, "cells": cells}
        )
    named = {name for report in reports for name in report.dialects}
    return {
        "title": title,
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
    cases: list[list[Any]] = []
    for result in alike:
        # The reasons of refusals repeat, and take up room once; every other text has numbers of its own.
        keep = result.detail and (verdict is Verdict.REFUSES or len(cases) < TEXTS)
        text = strings(result.detail) if keep else -1
        repro = strings(result.repro) if result.repro and len(cases) < REPROS else -1
        units = float(f"{result.units:.2g}") if math.isfinite(result.units) else None
        cases.append([strings(result.id), units, strings(result.mode), text, repro])
    return {"verdict": ORDER.index(verdict), "dialects": list(dialects), "cases": cases}


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
