"""How arrays lie in memory, and upstream gradients: what must not change the answer, and what must."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import gradients, make
from unixent_conformance.cases.inputs import DTYPES, Recipe, dtype_of
from unixent_conformance.model import Array, Call, Case

LAYOUT, UPSTREAM, PASSES = "memory layout", "upstream gradient", "two backward passes"


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
    "rows, few options": Recipe(positions=(9,)),
    "two axes, few options": Recipe(positions=(3, 5)),
    "middle axis": Recipe(positions=(3, 5), axis=1, mask="fraction"),
    "first axis": Recipe(positions=(9,), axis=0, mask="bool"),
    "probabilities": Recipe(target="probability", positions=(3, 4), axis=1, weight="plain"),
}

# A kernel without weights, masks and axes has strides too.
QUICK = ("middle axis", "rows, few options", "two axes, few options")


def cases() -> Iterator[Case]:
    yield from _layouts()
    yield from _grad_outputs()
    yield from _two_passes()


def _layouts() -> Iterator[Case]:
    for layout, change in LAYOUTS.items():
        for name, recipe in RECIPES.items():
            for dtype in ("float16", "float32"):
                made = recipe.but(dtype=dtype, grad_output="uneven", reduction="none")
                build, stem = partial(_laid_out, made, change), f"{LAYOUT}/{layout}/{name}/{dtype}"
                quick = dtype == "float32" and name in QUICK
                yield from gradients(stem, LAYOUT, build, made.needs(), quick=quick)


def _laid_out(recipe: Recipe, change: Callable[[Array], Array]) -> Call:
    call = recipe.call()
    changed: dict[str, Any] = {name: change(array) for name, array in call.arrays().items() if array.ndim}
    return replace(call, **changed, grad_output=change(call.grad_output))


def _grad_outputs() -> Iterator[Case]:
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
                made = recipe.but(dtype=dtype, reduction="none", grad_output="uneven")
                build, stem = partial(_with_changed, made, change), f"{UPSTREAM}/{pattern}/{name}/{dtype}"
                quick = dtype == "float32" and (pattern == "uneven" or (pattern, name) == ("mostly 0", "plain"))
                yield from gradients(stem, UPSTREAM, build, made.needs(), quick=quick)
            for reduction in ("sum", "mean"):
                for value in (0.0, -2.5):
                    made, stem = recipe.but(dtype=dtype, reduction=reduction), f"{UPSTREAM}/{value} under {reduction}"
                    build, quick = partial(_with_scalar, made, value), dtype == "float32" and value != 0
                    yield from gradients(f"{stem}/{name}/{dtype}", UPSTREAM, build, made.needs(), quick=quick)


def _with_changed(recipe: Recipe, change: Callable[[Array], Array]) -> Call:
    call = recipe.call()
    return replace(call, grad_output=change(call.grad_output))


def _with_scalar(recipe: Recipe, value: float) -> Call:
    return replace(recipe.call(), grad_output=np.asarray(value).astype(dtype_of(recipe.dtype)))


def _two_passes() -> Iterator[Case]:
    """What the forward pass saved is there for a second backward pass, as the first one found it."""
    for dtype in DTYPES:
        for name, recipe in {
            "none": Recipe(positions=(12,), reduction="none", grad_output="uneven"),
            "sum": Recipe(positions=(12,), reduction="sum", grad_output="uneven"),
            "mean": Recipe(positions=(12,), grad_output="uneven"),
            "ignored": Recipe(positions=(12,), ignore="default"),
            "probabilities": Recipe(positions=(12,), target="probability", grad_output="uneven"),
        }.items():
            made, quick = recipe.but(dtype=dtype), dtype == "float32"
            build = partial(_of_logits, made)
            id = f"{PASSES}/{name}/{dtype}"
            yield make(id, PASSES, build, "gradients of two passes", needs=made.needs(), quick=quick)


def _of_logits(recipe: Recipe) -> Call:
    return replace(recipe.call(), frozen=("target",))
