"""Statistics of positions: each output by itself, over the options that concern it, confident and hopeless rows, ties,
infinities, positions that do not count and classes that do not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import make
from unixent_conformance.cases.inputs import DTYPES, Recipe, dtype_of
from unixent_conformance.cases.linear import Linear
from unixent_conformance.model import Array, Call, Case

FEATURE, LINEAR = "statistics", "fused linear statistics"

DIFFERENTIABLE = ("log_prob", "entropy", "logsumexp", "selected_log_prob")
VALUES = ("log_sum_sq", "max_prob", "mean_logit", "top_log_prob")
EXACT = ("prediction", "correct", "rank", "top_index")
OUTPUTS = (*DIFFERENTIABLE, *VALUES, *EXACT)

PLAIN = Recipe(reduction="none")
RECIPES: dict[str, Recipe] = {
    "plain": PLAIN,
    "second axis": PLAIN.but(positions=(3, 4), axis=1),
    "no position axis": PLAIN.but(positions=()),
    "many positions": PLAIN.but(positions=(257,), classes=33),
    "wide": PLAIN.but(positions=(3,), classes=5000),
    "two classes": PLAIN.but(classes=2),
    "one class": PLAIN.but(classes=1),
    "ignored and masked": PLAIN.but(ignore="inside", mask="fraction", positions=(16,)),
    "scale and temperature": PLAIN.but(logit_scale=0.5, temperature=0.7),
    "around a softcap": PLAIN.but(logit_scale=2.0, softcap=5.0, temperature=0.7),
    "confident": PLAIN.but(confident=40.0),
    "hopeless": PLAIN.but(confident=-40.0),
    "far from 0": PLAIN.but(offset=1000.0),
    "no positions": PLAIN.but(positions=(0,)),
}
# The order of transformed logits may be one that they are rounded to.
ROUNDED = frozenset({"scale and temperature", "around a softcap"})

INF, NAN = float("inf"), float("nan")
ROWS: dict[str, tuple[list[list[float]], list[int], dict[str, Any]]] = {
    "equal logits": ([[1.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 1.0, 1.0]], [2, 3, 1], {}),
    "20 and zeros": ([[20.0, 0.0, 0.0, 0.0], [0.0, 20.0, 0.0, 0.0]], [0, 0], {}),
    "minus infinity": ([[-INF, 0.0, 1.0, -INF], [0.0, -INF, -INF, -INF]], [1, 0], {}),
    "minus infinity at the target": ([[-INF, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [0, 0], {}),
    "minus infinity, scaled and capped": ([[-INF, 0.0, 1.0, 2.0]], [1], {"scale": 0.5, "softcap": 3.0}),
    "nothing but minus infinity": ([[-INF] * 4, [0.0, 1.0, 2.0, 3.0]], [1, 0], {}),
    "plus infinity": ([[INF, 0.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [0, 1], {}),
    "NaN": ([[0.0, NAN, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [0, 1], {}),
    "NaN, ignored": ([[0.0, NAN, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [-100, 1], {}),
    "out of range, unread": ([[0.0, 3.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], [4, 1], {"validate": "off"}),
    "classes that do not exist": ([[0.0, 1.0, NAN, 9.0], [2.0, 1.0, INF, 9.0]], [0, 1], {"num_classes": 2}),
}


def cases() -> Iterator[Case]:
    """The value of every output, and the gradient of those that have one, under an uneven upstream gradient."""
    for name, recipe in RECIPES.items():
        for output in OUTPUTS:
            if output in EXACT and name in ROUNDED:
                continue
            for dtype in DTYPES:
                build = partial(_drawn, recipe.but(dtype=dtype), output)
                quick = dtype == "float32" and name in ("plain", "confident", "ignored and masked", "around a softcap")
                yield from _questions(f"{FEATURE}/{output}, {name}/{dtype}", output, build, quick)
    for name, (rows, target, options) in ROWS.items():
        for output in OUTPUTS:
            for dtype in DTYPES:
                build = partial(_spelled, rows, target, options, output, dtype)
                yield from _questions(f"{FEATURE}/{output}, {name}/{dtype}", output, build, dtype == "float32")
    for output in OUTPUTS:
        for dtype in ("float16", "float32"):
            for chunk in (None, 5):
                build = partial(_linear, output, dtype, chunk)
                id = f"{LINEAR}/{output}, chunk {chunk}/{dtype}/value"
                yield make(id, LINEAR, build, quick=dtype == "float32" and chunk is not None)
    for output in DIFFERENTIABLE:
        for dtype in ("float16", "float32"):
            graded = partial(_graded, partial(_inactive_state, output, dtype))
            id = f"{LINEAR}/{output}, an inactive state that holds NaN/{dtype}/gradients"
            yield make(id, LINEAR, graded, "linear gradients", quick=dtype == "float32" and output == "entropy")


def _questions(stem: str, output: str, build: Callable[[], Call], quick: bool) -> Iterator[Case]:
    call = build()
    yield make(f"{stem}/value", FEATURE, build, needs=call.needs(), quick=quick)
    if output in DIFFERENTIABLE:
        graded = partial(_graded, build)
        yield make(f"{stem}/gradient", FEATURE, graded, "logits gradient", needs=call.needs(), quick=quick)


def _drawn(recipe: Recipe, output: str) -> Call:
    call = recipe.call()
    return _asking(call, output, recipe.positions, recipe.classes)


def _spelled(rows: list[list[float]], target: list[int], options: dict[str, Any], output: str, dtype: str) -> Call:
    logits = np.array(rows).astype(dtype_of(dtype))
    call = Call(logits, np.array(target), options={**options, "reduction": "none"})
    return _asking(call, output, (len(rows),), options.get("num_classes") or logits.shape[1])


def _linear(output: str, dtype: str, chunk: int | None) -> Call:
    options = {} if chunk is None else {"chunk": chunk}
    recipe = PLAIN.but(positions=(23,), dtype=dtype, ignore="default")
    return _asking(Linear(recipe, options=options).call(), output, (23,), recipe.classes)


def _inactive_state(output: str, dtype: str) -> Call:
    """In eighths, so that logits are exact."""
    call = Linear(PLAIN.but(positions=(5,), classes=4, dtype=dtype), width=3).call()
    eighths = {name: np.round(8 * getattr(call, name)) / 8 for name in ("hidden", "classifier", "bias")}
    call = replace(call, **{name: array.astype(dtype_of(dtype)) for name, array in eighths.items()})
    call.hidden[1], call.target[1] = NAN, -100
    return _asking(call, output, (5,), 4)


def _asking(call: Call, output: str, positions: tuple[int, ...], classes: int) -> Call:
    """The call of a loss as one of a statistic, which has no reduction."""
    options = {name: value for name, value in call.options.items() if name != "reduction"}
    if output in ("top_log_prob", "top_index"):
        options["k"] = min(3, classes)
    return replace(call, statistic=output, selected=_selected(call, output, positions, classes), options=options)


def _selected(call: Call, output: str, positions: tuple[int, ...], classes: int) -> Array | None:
    """Classes that repeat, and one that is padding."""
    if output != "selected_log_prob":
        return None
    count = int(np.prod(positions, dtype=np.int64))
    selected = (np.arange(count)[:, None] + np.array([0, 2, 0, 1])) % classes
    selected[:, 3] = call.options.get("ignore_index", -100)
    return np.asarray(selected.reshape(*positions, 4))


def _graded(build: Callable[[], Call]) -> Call:
    call = build()
    shape = np.shape(call.target) if call.selected is None else np.shape(call.selected)
    upstream = np.cos(np.arange(int(np.prod(shape, dtype=np.int64)))).reshape(shape) + 0.25
    return replace(call, grad_output=upstream.astype(dtype_of(call.dtype)))
