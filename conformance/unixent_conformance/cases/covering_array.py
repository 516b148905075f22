"""A covering array: few rows in which every combination of levels of any `strength` factors occurs at least once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np

Row = dict[str, Any]


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
    names, every = list(factors), list[Row]()
    for group in combinations(names, strength):
        levels = product(*(factors[name] for name in group))
        every += filter(allowed, (dict(zip(group, each, strict=True)) for each in levels))
    places = {name: {level: place for place, level in enumerate(factors[name])} for name in names}
    # The place of each combination's level of each factor, -1 where it has none.
    columns = {n: np.array([places[n][each[n]] if n in each else -1 for each in every], np.int8) for n in names}
    left = np.ones(len(every), bool)

    def agreeing(row: Row) -> Any:
        """Which of those that are left a row may still cover."""
        agree = ((columns[n] < 0) | (columns[n] == places[n][level]) for n, level in row.items())
        return np.logical_and.reduce([left, *agree])

    def gain(name: str, level: Any, open_: Any) -> int:
        return int(np.count_nonzero(open_ & (columns[name] == places[name][level])))

    for row in start:
        left &= ~agreeing(row)
    rows: list[Row] = []
    while left.any():
        row = dict(every[int(np.argmax(left))])
        for name in names:
            if name not in row:
                open_ = agreeing(row)
                options = [level for level in factors[name] if allowed({**row, name: level})]
                row[name] = max(options, key=lambda level: gain(name, level, open_))
        rows.append({name: row[name] for name in names})
        left &= ~agreeing(row)
    return rows
