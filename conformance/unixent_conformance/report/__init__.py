"""Reports in every form: a terminal's table, JSON, JUnit, Markdown and one self-contained HTML page."""

from __future__ import annotations

from unixent_conformance.report.files import read, write
from unixent_conformance.report.formats import from_json, to_json, to_junit, to_markdown
from unixent_conformance.report.page import to_html

__all__ = ["from_json", "read", "to_html", "to_json", "to_junit", "to_markdown", "write"]
