"""A release needs one version everywhere and addresses that lead somewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
problems: Any = run_path(str(ROOT / "tools" / "check_release.py"))["problems"]
URLS = "".join(
    f'{label} = "https://unixent.readthedocs.io/"\n' for label in ("Homepage", "Documentation", "Issues", "Changelog")
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy as it would be released: dated, and with addresses."""
    for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    edit(tmp_path / "CHANGELOG.md", " (unreleased)", "")
    edit(
        tmp_path / "pyproject.toml",
        "[project.optional-dependencies]",
        f"[project.urls]\n{URLS}\n[project.optional-dependencies]",
    )
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def test_what_is_ready_passes(checkout: Path) -> None:
    assert problems(checkout, "v0.1.0") == []


def test_today_addresses_and_the_date_are_missing() -> None:
    wrong = problems(ROOT, "v0.1.0")
    assert wrong[0] == "CHANGELOG.md: expected 0.1.0, got 0.1.0 (unreleased)"
    assert wrong[1:] == [
        f"pyproject.toml: expected {label} in [project.urls]"
        for label in ("Homepage", "Documentation", "Issues", "Changelog")
    ]


@pytest.mark.parametrize(
    "url",
    ["https://unixent.example/", "http://unixent.org", "https://localhost/", "https://docs.example.com", "unixent"],
)
def test_placeholders_are_refused(checkout: Path, url: str) -> None:
    edit(checkout / "pyproject.toml", 'Homepage = "https://unixent.readthedocs.io/"', f'Homepage = "{url}"')
    assert problems(checkout, "v0.1.0") == [f"pyproject.toml: expected a public https address of Homepage, got {url}"]


def test_versions_must_agree(checkout: Path) -> None:
    edit(checkout / "CITATION.cff", "version: 0.1.0", "version: 0.0.9")
    assert problems(checkout, "v0.2.0") == [
        "the tag: expected 0.1.0, got 0.2.0",
        "CITATION.cff: expected 0.1.0, got 0.0.9",
    ]
