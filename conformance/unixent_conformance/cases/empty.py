"""Means over nothing, calls without positions, and the dtype of the result."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import VALUE_AND_GRADIENT, each, make
from unixent_conformance.cases.inputs import DTYPES, Recipe, dtype_of
from unixent_conformance.model import Call, Case, Raises

EMPTY, NONE, RESULT = "empty mean", "no positions", "result dtype"

DUE = Raises("EmptyMeanError", "on_empty")


def cases() -> Iterator[Case]:
    yield from _empty_means()
    yield from _no_positions()
    yield from _results()


NO_WEIGHT = np.array([0.0, 0.0, 1.0], np.float32)

# reason -> what is changed in four positions of three classes, that the denominator counts none of them
REASONS: dict[str, dict[str, Any]] = {
    "all ignored": {"target": np.full(4, -100)},
    "all masked": {"mask": np.zeros(4, dtype=bool)},
    "all masked, probabilities": {"mask": np.zeros(4, np.float32)},
    "all of weight 0": {"weight": NO_WEIGHT},
    "ignored or of weight 0": {"weight": NO_WEIGHT, "target": np.array([0, -100, 1, -100])},
    "normalizer 0": {"options": {"normalizer": 0.0}},
    "normalizer array of 0": {"options": {"normalizer": np.zeros((), np.float32)}},
    "NaN logits, all masked": {"mask": np.zeros(4, np.float32), "logits": np.full((4, 3), np.nan, np.float32)},
}


# The default says nothing, and an implementation need not have the option.
ON_EMPTY: dict[str, dict[str, Any]] = {
    "default": {},
    **{on_empty: {"on_empty": on_empty} for on_empty in ("zero", "nan", "raise")},
}


def _nothing(reason: str, **options: Any) -> Call:
    rng, changes = np.random.default_rng(2), deepcopy(REASONS[reason])
    call = Call(rng.normal(0.0, 2.0, (4, 3)).astype(np.float32), np.array([0, 1, 1, 0]))
    if reason == "all masked, probabilities":
        changes["target"] = rng.dirichlet(np.ones(3), 4).astype(np.float32)
    return replace(call, **{**changes, "options": {**changes.get("options", {}), **options}})


def _empty_means() -> Iterator[Case]:
    for reason in REASONS:
        for quantity, word in VALUE_AND_GRADIENT:
            for on_empty, options in ON_EMPTY.items():
                build = partial(_nothing, reason, **options)
                raises = DUE if on_empty == "raise" else None
                yield make(f"{EMPTY}/{reason}/{on_empty}/{word}", EMPTY, build, quantity, raises=raises, quick=True)
        yield make(f"{EMPTY}/{reason}/terms", EMPTY, partial(_nothing_terms, reason), "terms")
    for dtype in DTYPES:  # nothing but what every loss has
        for reduction in ("none", "sum", "mean") if dtype == "float32" else ("mean",):
            build, stem = partial(_all_ignored, dtype, reduction), f"{EMPTY}/all ignored/{dtype}-{reduction}"
            yield from each(stem, EMPTY, build, quick=dtype != "float64")
    # Something counts: on_empty says nothing.
    for on_empty in ("nan", "raise"):
        yield make(f"{EMPTY}/something counts/{on_empty}/value", EMPTY, partial(_something, on_empty), quick=True)


def _all_ignored(dtype: str, reduction: str) -> Call:
    call, options = _nothing("all ignored"), {} if reduction == "mean" else {"reduction": reduction}
    return replace(call, logits=call.logits.astype(dtype_of(dtype)), options=options)


def _nothing_terms(reason: str) -> Call:
    call = _nothing(reason)
    return Call(call.logits, call.target, call.weight, call.mask)


def _something(on_empty: str) -> Call:
    call = _nothing("all of weight 0")
    return Call(call.logits, np.array([0, 1, 2, -100]), call.weight, None, {"on_empty": on_empty})


def _no_positions() -> Iterator[Case]:
    for name, positions, axis in (("(0, C)", (0,), -1), ("(C, 0)", (0,), 0), ("(3, C, 0)", (3, 0), 1)):
        for target in ("index", "probability"):
            for reduction in ("none", "sum", "mean"):
                recipe = Recipe(target=target, positions=positions, axis=axis, reduction=reduction)
                yield from each(f"{NONE}/{name}/{target}-{reduction}", NONE, recipe.call, quick=True)
        build = partial(_no_rows, positions, axis)
        yield make(f"{NONE}/{name}/raise", NONE, build, raises=DUE, quick=True)
        yield make(f"{NONE}/{name}/terms", NONE, Recipe(positions=positions, axis=axis).call, "terms")


def _no_rows(positions: tuple[int, ...], axis: int) -> Call:
    call = Recipe(positions=positions, axis=axis).call()
    return Call(call.logits, call.target, options={**call.options, "on_empty": "raise"})


def _results() -> Iterator[Case]:
    """dtype= changes the result alone: the gradient keeps the dtype of logits, the sums that of the accumulation."""
    for dtype in DTYPES:
        for result in DTYPES:
            stem = f"{RESULT}/{dtype} to {result}"
            for reduction in ("none", "sum", "mean"):
                recipe = Recipe(dtype=dtype, result=result, reduction=reduction, positions=(40,), grad_output="uneven")
                yield from each(f"{stem}/{reduction}", RESULT, recipe.call, quick=reduction == "mean")
            recipe = Recipe(dtype=dtype, result=result, positions=(40,), mask="fraction")
            yield make(f"{stem}/terms", RESULT, recipe.call, "terms")
