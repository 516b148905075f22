"""Options against each other: every combination of any three levels occurs, every pair among the quick cases, and two
options without any other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from unixent_conformance.cases.building import from_recipe, make
from unixent_conformance.cases.covering_array import Row, covering_array
from unixent_conformance.cases.inputs import DTYPES, Recipe
from unixent_conformance.model import Case

FEATURE = "combinations"

SHAPES: dict[str, tuple[tuple[int, ...], int, int]] = {
    # positions, classes, axis
    "rows": ((6,), 7, -1),
    "columns": ((2, 3), 5, 0),
    "middle": ((3, 4), 6, 1),
    "single": ((), 4, -1),
    "many": ((130,), 3, -1),
}

FACTORS: dict[str, list[Any]] = {
    "dtype": list(DTYPES),
    "target": ["index", "probability", "unnormalised"],
    "weight": ["none", "plain", "zeros"],
    "mask": ["none", "bool", "int", "fraction"],
    "ignore": ["none", "default", "inside", "outside"],
    "smoothing": [0.0, 0.1, 1.0],
    "z_loss": [0.0, 0.05],
    "logit_scale": [1.0, 0.5],
    "softcap": [None, 6.0],
    "temperature": [1.0, 0.7],
    "shape": list(SHAPES),
    "reduction": ["mean", "sum", "none"],
    "normalizer": ["none", "float", "array"],
    "result": [None, "float32", "float64"],
    "confident": [0.0, 20.0],
}

# One level of each option: what a kernel that has two options makes of both.
ALONE: dict[str, dict[str, Any]] = {
    "weight": {"weight": "plain"},
    "mask": {"mask": "fraction"},
    "ignore_index": {"ignore": "default"},
    "label_smoothing": {"smoothing": 0.1},
    "z_loss": {"z_loss": 0.05},
    "scale": {"logit_scale": 0.5},
    "softcap": {"softcap": 5.0},
    "temperature": {"temperature": 0.7},
    "normalizer": {"normalizer": "float"},
    "axis": {"axis": 0},
}


def allowed(row: Row) -> bool:
    """Probabilities have no index to ignore; only a mean is normalised; a result is given in a dtype it has not."""
    if row.get("target", "index") != "index" and row.get("ignore", "none") != "none":
        return False
    if row.get("reduction", "mean") != "mean" and row.get("normalizer", "none") != "none":
        return False
    return row.get("result") is None or row.get("result") != row.get("dtype")


def cases() -> Iterator[Case]:
    """Rows of the pairwise array are quick, those that strength three needs beyond them follow; then pairs alone."""
    pairs = covering_array(FACTORS, 2, allowed)
    for row in pairs:
        yield from _of(row, quick=True)
    for row in covering_array(FACTORS, 3, allowed, start=pairs):
        yield from _of(row, quick=False)
    for one, other in combinations(ALONE, 2):
        recipe = Recipe(positions=(4,), classes=5, grad_output="uneven", **ALONE[one], **ALONE[other])
        id, needs = f"{FEATURE}/{one} and {other} alone/float32-mean/gradient", recipe.needs()
        yield make(id, FEATURE, recipe.call, "logits gradient", needs=needs, quick=True)


def _of(row: Row, quick: bool) -> Iterator[Case]:
    positions, classes, axis = SHAPES[row["shape"]]
    levels = {name: value for name, value in row.items() if name != "shape"}
    recipe = Recipe(**{**levels, "positions": positions, "classes": classes, "axis": axis, "seed": 1})
    named = [row["target"], row["dtype"], row["shape"], row["reduction"]]
    for name, value in row.items():
        if name not in ("target", "dtype", "shape", "reduction") and value != getattr(Recipe, name):
            named.append(f"{name}.{value}")
    stem = f"{FEATURE}/{'+'.join(map(str, named))}"
    yield from from_recipe(stem, FEATURE, recipe, quick=quick, divisible=True)
    terms = recipe.but(reduction="mean", normalizer="none")
    yield make(f"{stem}/terms", FEATURE, terms.call, "terms", needs=terms.needs(), quick=quick, divisible=True)
