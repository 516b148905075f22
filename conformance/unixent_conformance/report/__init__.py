"""Reports in every form: a terminal's table, JSON, JUnit, Markdown and one self-contained HTML page."""

from __future__ import annotations

from unixent_conformance.report.files import read, write
from unixent_conformance.report.formats import to_junit, to_markdown
from unixent_conformance.report.page import to_html

__all__ = ["read", "to_html", "to_junit", "to_markdown", "write"]
