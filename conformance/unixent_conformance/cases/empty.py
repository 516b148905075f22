"""Means over nothing, calls without positions, and the dtype of the result."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.inputs import DTYPES, Recipe
from unixent_conformance.cases.model import Asks, Call, Case, Raises

EMPTY, NONE, RESULT = "empty mean", "no positions", "result dtype"
NEEDS = frozenset({"dtype:float32", "target:index"})

_ASKS: tuple[tuple[Asks, str], ...] = (("loss", "value"), ("logits gradient", "gradient"))


def cases() -> Iterator[Case]:
    yield from _empty_means()
    yield from _no_positions()
    yield from _results()


def _nothing(kind: str, **options: Any) -> Call:
    """Four positions, none of which the denominator counts."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0.0, 2.0, (4, 3)).astype(np.float32)
    target, weight, mask = np.array([0, 1, 1, 0]), None, None
    if kind == "all ignored":
        target = np.full(4, -100)
    if kind == "all masked":
        mask = np.zeros(4, dtype=bool)
    if kind == "all masked, probabilities":
        mask, target = np.zeros(4, np.float32), rng.dirichlet(np.ones(3), 4).astype(np.float32)
    if kind == "all of weight 0":
        weight = np.array([0.0, 0.0, 1.0], np.float32)
    if kind == "ignored or of weight 0":
        weight, target = np.array([0.0, 0.0, 1.0], np.float32), np.array([0, -100, 1, -100])
    if kind == "normalizer 0":
        options["normalizer"] = 0.0
    if kind == "normalizer array of 0":
        options["normalizer"] = np.zeros((), np.float32)
    if kind == "NaN logits, all masked":
        mask, logits = np.zeros(4, np.float32), np.full_like(logits, np.nan)
    return Call(logits, target, weight, mask, options)


KINDS = (
    "all ignored",
    "all masked",
    "all masked, probabilities",
    "all of weight 0",
    "ignored or of weight 0",
    "normalizer 0",
    "normalizer array of 0",
    "NaN logits, all masked",
)


def _empty_means() -> Iterator[Case]:
    for kind in KINDS:
        needs = frozenset({"dtype:float32", f"target:{'probability' if 'probabilities' in kind else 'index'}"})
        for asks, word in _ASKS:
            for on_empty in ("zero", "nan"):
                build = partial(_nothing, kind, on_empty=on_empty)
                yield Case(_id(f"{EMPTY}/{kind}/{on_empty}/{word}"), EMPTY, build, asks, needs, quick=True)
            due = Raises("EmptyMeanError", "on_empty")
            build = partial(_nothing, kind, on_empty="raise")
            yield Case(_id(f"{EMPTY}/{kind}/raise/{word}"), EMPTY, build, asks, needs, due, quick=True)
        yield Case(_id(f"{EMPTY}/{kind}/terms"), EMPTY, partial(_nothing_terms, kind), "terms", needs)
    # Something counts: on_empty says nothing.
    for on_empty in ("nan", "raise"):
        build = partial(_something, on_empty)
        yield Case(_id(f"{EMPTY}/something counts/{on_empty}/value"), EMPTY, build, "loss", NEEDS, quick=True)


def _nothing_terms(kind: str) -> Call:
    call = _nothing(kind)
    return Call(call.logits, call.target, call.weight, call.mask)


def _something(on_empty: str) -> Call:
    call = _nothing("all of weight 0")
    return Call(call.logits, np.array([0, 1, 2, -100]), call.weight, None, {"on_empty": on_empty})


def _no_positions() -> Iterator[Case]:
    for name, positions, axis in (("(0, C)", (0,), -1), ("(C, 0)", (0,), 0), ("(3, C, 0)", (3, 0), 1)):
        for target in ("index", "probability"):
            for reduction in ("none", "sum", "mean"):
                recipe = Recipe(target=target, positions=positions, axis=axis, reduction=reduction)
                needs = frozenset({"dtype:float32", f"target:{target}"})
                for asks, word in _ASKS:
                    stem = f"{NONE}/{name}/{target}-{reduction}/{word}"
                    yield Case(_id(stem), NONE, recipe.call, asks, needs, quick=True)
        build = partial(_no_rows, positions, axis)
        due = Raises("EmptyMeanError", "on_empty")
        yield Case(_id(f"{NONE}/{name}/raise"), NONE, build, "loss", NEEDS, due, quick=True)
        yield Case(_id(f"{NONE}/{name}/terms"), NONE, Recipe(positions=positions, axis=axis).call, "terms", NEEDS)


def _no_rows(positions: tuple[int, ...], axis: int) -> Call:
    call = Recipe(positions=positions, axis=axis).call()
    return Call(call.logits, call.target, options={**call.options, "on_empty": "raise"})


def _results() -> Iterator[Case]:
    """dtype= changes the result alone: the gradient keeps the dtype of logits, the sums that of the accumulation."""
    for dtype in DTYPES:
        for result in DTYPES:
            needs = frozenset({f"dtype:{dtype}", f"dtype:{result}", "target:index"})
            for reduction in ("none", "sum", "mean"):
                recipe = Recipe(dtype=dtype, result=result, reduction=reduction, positions=(40,), upstream="uneven")
                for asks, word in _ASKS:
                    stem = f"{RESULT}/{dtype} to {result}/{reduction}/{word}"
                    yield Case(_id(stem), RESULT, recipe.call, asks, needs, quick=reduction == "mean")
            recipe = Recipe(dtype=dtype, result=result, positions=(40,), mask="fraction")
            yield Case(_id(f"{RESULT}/{dtype} to {result}/terms"), RESULT, recipe.call, "terms", needs)


def _id(text: str) -> str:
    return text.replace(" ", "-").replace(",", "")
