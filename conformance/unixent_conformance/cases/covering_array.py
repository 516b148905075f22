"""A covering array: few rows in which every combination of levels of any `strength` factors occurs at least once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Row = dict[str, Any]
Combination = tuple[tuple[str, Any], ...]  # levels of some factors, in the factors' order


def covering_array(
    factors: Mapping[str, Sequence[Any]],
    strength: int,
    allowed: Callable[[Row], bool] = lambda row: True,
    start: Sequence[Row] = (),
) -> list[Row]:
    """Rows that cover every allowed combination of any `strength` factors, greedily and without chance.

    Each new row starts from the first combination not yet covered and takes, factor by factor, the level that covers
    most of what is left. `allowed` judges partial rows too and must not forbid what can be completed. What the rows of
    `start` cover is taken as covered; they are not returned again.

    >>> rows = covering_array({"a": [0, 1], "b": [0, 1], "c": [0, 1]}, strength=2)
    >>> len(rows)
    4
    """
    names = list(factors)
    groups = list(combinations(names, strength))
    # What is still open, under each of its levels: a set that keeps its order.
    open_: dict[tuple[str, Any], dict[Combination, None]] = {(n, level): {} for n in names for level in factors[n]}
    waiting: dict[Combination, None] = {}

    def cover(row: Row) -> None:
        for group in groups:
            combination = tuple((name, row[name]) for name in group)
            if combination in waiting:
                del waiting[combination]
                for level in combination:
                    del open_[level][combination]

    for group in groups:
        for levels in product(*(factors[name] for name in group)):
            combination = tuple(zip(group, levels, strict=True))
            if allowed(dict(combination)):
                waiting[combination] = None
                for level in combination:
                    open_[level][combination] = None
    for row in start:
        cover(row)
    rows: list[Row] = []
    while waiting:
        row = dict(next(iter(waiting)))
        for name in names:
            if name not in row:
                options = [level for level in factors[name] if allowed({**row, name: level})]
                row[name] = max(options, key=lambda level: _gain({**row, name: level}, open_[name, level]))
        rows.append({name: row[name] for name in names})
        cover(row)
    return rows


def _gain(row: Row, open_: Mapping[Combination, None]) -> int:
    """How many open combinations agree with the row."""
    return sum(all(row.get(name, level) == level for name, level in combination) for combination in open_)
