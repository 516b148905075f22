"""A covering array: few rows in which every combination of levels of any `strength` factors occurs at least once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Row = dict[str, Any]


def covering_array(
    factors: Mapping[str, Sequence[Any]], strength: int, allowed: Callable[[Row], bool] = lambda row: True
) -> list[Row]:
    """Rows that cover every allowed combination of any `strength` factors, greedily and without chance.

    Each new row starts from the first combination not yet covered and takes, factor by factor, the level that covers
    most of what is left. `allowed` judges partial rows too and must not forbid what can be completed.

    >>> rows = covering_array({"a": [0, 1], "b": [0, 1], "c": [0, 1]}, strength=2)
    >>> len(rows)
    4
    """
    names = list(factors)
    groups = list(combinations(names, strength))
    open_: dict[tuple[tuple[str, Any], ...], None] = {}
    for group in groups:
        for levels in product(*(factors[name] for name in group)):
            if allowed(dict(zip(group, levels, strict=True))):
                open_[tuple(zip(group, levels, strict=True))] = None
    rows: list[Row] = []
    while open_:
        seed = next(iter(open_))
        row: Row = dict(seed)
        for name in names:
            if name not in row:
                options = [level for level in factors[name] if allowed({**row, name: level})]
                row[name] = max(options, key=lambda level: _gain(row, name, level, open_))
        row = {name: row[name] for name in names}
        rows.append(row)
        for group in groups:
            open_.pop(tuple((name, row[name]) for name in group), None)
    return rows


def _gain(row: Row, name: str, level: Any, open_: Mapping[tuple[tuple[str, Any], ...], None]) -> int:
    """How many combinations still open agree with the row once `name` is at `level`."""
    trial = {**row, name: level}
    return sum(
        1
        for combination in open_
        if (name, level) in combination and all(trial.get(key, value) == value for key, value in combination)
    )
