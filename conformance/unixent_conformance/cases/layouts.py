"""How arrays lie in memory, and upstream gradients: what must not change the answer, and what must."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.inputs import DTYPES, Recipe, dtype_of
from unixent_conformance.cases.model import Asks, Call, Case, needs_of
from unixent_conformance.oracle import Array

LAYOUT, UPSTREAM = "memory layout", "upstream gradient"


def _every_other(array: Array) -> Array:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _reversed(array: Array) -> Array:
    return np.ascontiguousarray(array[::-1])[::-1]


def _read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


def _broadcast(array: Array) -> Array:
    """Every row the first: a stride of 0."""
    return np.broadcast_to(array[:1].copy(), array.shape)


def _slice_of_more(array: Array) -> Array:
    wide = np.full(tuple(n + 3 for n in array.shape), 7).astype(array.dtype)
    inner = tuple(slice(2, 2 + n) for n in array.shape)
    wide[inner] = array
    return wide[inner]


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran order": np.asfortranarray,
    "every other element": _every_other,
    "negative strides": _reversed,
    "read-only": _read_only,
    "stride 0": _broadcast,
    "a slice of more": _slice_of_more,
}

RECIPES = {
    "rows": Recipe(positions=(9,), weight="plain", mask="fraction"),
    "middle axis": Recipe(positions=(3, 5), axis=1, mask="fraction"),
    "first axis": Recipe(positions=(9,), axis=0, mask="bool"),
    "probabilities": Recipe(target="probability", positions=(3, 4), axis=1, weight="plain"),
}


def cases() -> Iterator[Case]:
    yield from _layouts()
    yield from _upstreams()


def _layouts() -> Iterator[Case]:
    for layout, change in LAYOUTS.items():
        for name, recipe in RECIPES.items():
            for dtype in ("float16", "float32"):
                build = partial(_laid_out, recipe.but(dtype=dtype, upstream="uneven", reduction="none"), change)
                quick = dtype == "float32" and name == "middle axis"
                yield from _gradients(f"{LAYOUT}/{layout}/{name}/{dtype}", LAYOUT, build, quick)


def _laid_out(recipe: Recipe, change: Callable[[Array], Array]) -> Call:
    call = recipe.call()
    changed: dict[str, Any] = {name: change(array) for name, array in call.arrays().items() if array.ndim}
    return replace(call, **changed, upstream=change(call.upstream))


def _upstreams() -> Iterator[Case]:
    patterns: dict[str, Callable[[Array], Array]] = {
        "uneven": lambda up: up,
        "mostly 0": lambda up: np.where(np.arange(up.size).reshape(up.shape) % 3, up.dtype.type(0), up),
        "negative": lambda up: -abs(up),
        "ramp": lambda up: np.arange(up.size).reshape(up.shape).astype(up.dtype),
        "small": lambda up: (up.astype(np.float64) * 1e-3).astype(up.dtype),
    }
    recipes = {
        "plain": Recipe(positions=(12,)),
        "ignored and masked": Recipe(positions=(20,), ignore="default", mask="fraction", weight="plain"),
        "two axes": Recipe(positions=(3, 4), axis=1, smoothing=0.1),
        "capped": Recipe(positions=(12,), softcap=5.0, z_loss=0.01),
        "probabilities": Recipe(positions=(12,), target="unnormalised", weight="plain"),
    }
    for name, recipe in recipes.items():
        for dtype in DTYPES:
            for pattern, change in patterns.items():
                made = recipe.but(dtype=dtype, reduction="none", upstream="uneven")
                stem = f"{UPSTREAM}/{pattern}/{name}/{dtype}"
                build = partial(_with_upstream, made, change)
                yield from _gradients(stem, UPSTREAM, build, dtype == "float32" and pattern == "uneven")
            for reduction in ("sum", "mean"):
                for value in (0.0, -2.5):
                    made = recipe.but(dtype=dtype, reduction=reduction)
                    stem = f"{UPSTREAM}/{value} under {reduction}/{name}/{dtype}"
                    build = partial(_with_scalar, made, value)
                    yield from _gradients(stem, UPSTREAM, build, dtype == "float32" and value != 0)


def _with_upstream(recipe: Recipe, change: Callable[[Array], Array]) -> Call:
    call = recipe.call()
    return replace(call, upstream=change(call.upstream))


def _with_scalar(recipe: Recipe, value: float) -> Call:
    return replace(recipe.call(), upstream=np.asarray(value).astype(dtype_of(recipe.dtype)))


def _gradients(stem: str, feature: str, build: Callable[[], Call], quick: bool, **more: Any) -> Iterator[Case]:
    """The gradients that are defined; the value comes with each and is compared too."""
    stem = stem.replace(" ", "-").replace(",", "")
    needs = needs_of(build())
    asks: list[tuple[Asks, str]] = [("logits gradient", "gradient")]
    if "target:probability" in needs:
        asks.append(("target gradient", "target-gradient"))
    for question, word in asks:
        yield Case(f"{stem}/{word}", feature, build, question, needs, quick=quick, **more)
