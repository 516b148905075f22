"""What `--report DIR` writes and `--merge PATH` reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from unixent_conformance.report.formats import to_junit, to_markdown
from unixent_conformance.report.page import to_html
from unixent_conformance.results import Report

FORMS: dict[str, Callable[[Report], str]] = {".json": Report.to_json, ".xml": to_junit, ".md": to_markdown}


def write(folder: Path, reports: Sequence[Report], title: str = "Conformance") -> list[Path]:
    """index.html over all the reports, and for each its JSON, JUnit and Markdown, named after the implementation."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"index.html": to_html(reports, title)}
    for report in reports:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", report.implementation).strip("-")
        texts.update({stem + suffix: form(report) for suffix, form in FORMS.items()})
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def read(path: Path) -> list[Report]:
    """The report of a JSON file, or those of a folder of them."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: expected JSON reports; it holds none")
    return [_one(file) for file in files]


def _one(file: Path) -> Report:
    """Which of a folder's files is no report, a user must be told."""
    try:
        return Report.from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
