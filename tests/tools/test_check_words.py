"""The vocabulary check of the commit hooks."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
complaints: Any = run_path(str(ROOT / "tools" / "check_words.py"))["complaints"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("found = 1", "found"),
        ("def first_found(): ...", "first_found"),
        ("class AllSides: ...", "AllSides"),
        ("def f(slopes): ...", "slopes"),
        ("self.lead = 1", "lead"),
        ("import numpy as mine", "mine"),
        ("for kind in (): ...", "kind"),
    ],
)
def test_it_rejects_names_that_the_file_binds(source: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    (complaint,) = complaints(path)
    assert f":1: `{name}`: " in complaint


@pytest.mark.parametrize("name", ["found", "old_slopes"])
def test_it_rejects_names_of_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.py"
    path.touch()
    assert len(list(complaints(path))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "dtype.kind",
        "raise ModuleNotFoundError",
        '"""What was found."""',
        "target_kind = 1",
        "leading = 1",
        "founder = 1",
    ],
)
def test_it_accepts_prose_foreign_names_and_longer_words(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert not list(complaints(path))
