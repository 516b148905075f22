"""The tables of docs/migrate.md: both sides of a row give the same, or what the row says that they give.

A row runs with the names of the block above its table, in the environments that have what the block needs.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migrate.md"
PIECE = re.compile(r"^```python ([^\n]*)\n(.*?)^```$|^\| (`[^\n]*) \|$", re.MULTILINE | re.DOTALL)


class Row(NamedTuple):
    needs: tuple[str, ...]
    setup: str
    cells: tuple[str, ...]  # theirs and ours; or each with what it gives

    def __str__(self) -> str:
        return self.cells[0].strip("`")


def rows() -> list[Row]:
    listed, needs, setup = [], (), ""
    for words, block, row in PIECE.findall(PAGE.read_text("utf-8")):
        if row:
            listed.append(Row(needs, setup, tuple(row.split(" | "))))
        else:
            needs, setup = tuple(words.split()), block
    return listed


@cache
def names(setup: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(setup, namespace)
    return namespace


def value(cell: str, row: Row) -> Any:
    """The number or the array that a cell's code gives, or the name of its error."""
    try:
        result = eval(cell.strip("`"), names(row.setup))
        return np.asarray(result.asnumpy() if hasattr(result, "asnumpy") else result)
    except Exception as error:
        return type(error).__name__


ROWS = rows()
SAME = [row for row in ROWS if len(row.cells) == 2]
DIFFERENT = [row for row in ROWS if len(row.cells) == 4]


def skip_without(needs: tuple[str, ...]) -> None:
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def test_every_library_has_rows() -> None:
    assert len(SAME) + len(DIFFERENT) == len(ROWS) > 40
    assert {row.needs for row in SAME} == {row.needs for row in DIFFERENT}
    libraries = {"torch", "jax", "mindspore", "tensorflow", "paddle", "mlx", "sklearn", "numpy"}
    assert {row.needs[0] for row in ROWS} == libraries


@pytest.mark.parametrize("row", SAME, ids=str)
def test_theirs_and_ours_give_the_same(row: Row) -> None:
    skip_without(row.needs)
    theirs, ours = (value(cell, row) for cell in row.cells)
    assert not isinstance(theirs, str), theirs
    assert not isinstance(ours, str), ours
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("row", DIFFERENT, ids=str)
def test_each_side_gives_what_its_row_says(row: Row) -> None:
    skip_without(row.needs)
    theirs, ours = (value(cell, row) for cell in row.cells[::2])
    for actual, said in ((theirs, row.cells[1]), (ours, row.cells[3])):
        if said.endswith("Error"):
            assert actual == said
        else:
            assert not isinstance(actual, str), actual
            np.testing.assert_allclose(actual, float(said), rtol=2e-3)
    assert row.cells[1] != row.cells[3]
