"""The edges of tiles: a kernel takes the classes in blocks, and the features of a dot product, of a power of two.

Sizes on either side of the usual blocks, whole blocks that are -inf (a running maximum that is still -inf makes NaN of
exp(-inf - -inf)), options and special values beyond the first block. Rows are few, so that the classes may be many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import VALUE_AND_GRADIENT, VALUE_AND_GRADIENTS, each
from unixent_conformance.cases.inputs import HALF, Recipe
from unixent_conformance.cases.linear import Linear
from unixent_conformance.model import Call, Case

TILES, FUSED = "tile edges", "fused linear tile edges"

SMALL = (127, 128, 129, 1023, 1024, 1025, 4095, 4096, 4097)
WIDE = tuple(size + more for size in (16_384, 32_768, 65_536) for more in (-8, 0, 8))
VOCABULARIES = (50_257, 129_920, 151_936, 262_144)

# Real vocabularies that are the longest to try: asked without a block of -inf.
PLAIN = (50_257, 129_920, 151_936)

# Sizes just beyond a block, which are asked more.
BEYOND = (129, 1025, 4097, 16_392)
QUICK = (129, 16_392)

OPTIONS: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 5.0},
    "smoothing, z-loss": {"smoothing": 0.1, "z_loss": 0.01, "weight": "plain"},
    "probabilities": {"target": "probability"},
    "temperature": {"logit_scale": 1.5, "temperature": 0.7},
}
REDUCTIONS = ("mean", "sum", "none")
WIDTHS = (255, 256, 257, 1023, 1024, 1025)


def block(classes: int) -> int:
    """The largest power of two below a number of classes."""
    return 1 << (classes - 1).bit_length() - 1


def cases() -> Iterator[Case]:
    for classes in (*SMALL, *WIDE, *VOCABULARIES):
        recipe = Recipe(positions=(2,), classes=classes)
        yield from _each(f"{classes}", recipe, "plain", classes in (129, 50_257, 65_544))
        for place in ("first", "last") if classes not in PLAIN else ():
            yield from _each(f"{classes}, {place} block -inf", recipe, place, classes in QUICK)
    for classes in BEYOND:
        recipe = Recipe(positions=(2,), classes=classes)
        for name, options in OPTIONS.items():
            at = recipe.but(**options)
            yield from _each(f"{classes}, {name}", at, "plain", classes in QUICK[name == "temperature" :])
            if name == "softcap":  # -inf stays -inf under a cap
                for place in ("first", "last"):
                    yield from _each(f"{classes}, {name}, {place} block -inf", at, place, classes in QUICK)
        for word, value in {"NaN": np.nan, "inf": np.inf}.items():
            yield from _each(f"{classes}, {word} beyond the block", recipe, word, classes == 129, value)
        yield from _each(f"{classes}, NaN masked", recipe, "masked", classes in QUICK, np.nan)
        yield from _each(f"{classes}, ignored", recipe.but(ignore="default"), "plain", classes in QUICK)
        for reduction in REDUCTIONS[1:]:
            summed = recipe.but(reduction=reduction, grad_output="uneven")
            yield from _each(f"{classes}, {reduction}", summed, "plain", classes in QUICK[reduction == "sum" :])
        for dtype in HALF:
            yield from _each(f"{classes}, first block -inf", recipe.but(dtype=dtype), "first")
    yield from _linear()


def _each(name: str, recipe: Recipe, place: str, quick: bool = False, value: float = -np.inf) -> Iterator[Case]:
    stem, build = f"{TILES}/{name}/{recipe.dtype}", partial(_placed, recipe, place, value)
    yield from each(stem, TILES, build, VALUE_AND_GRADIENT, needs=recipe.needs(), quick=quick)


def _placed(recipe: Recipe, place: str, value: float) -> Call:
    """The last class, and one beside a block's edge, as targets; something in the place of a block's logits."""
    call, classes = recipe.call(), recipe.classes
    edge, beyond = block(classes), np.arange(classes) >= block(classes)
    target = call.target if not call.has_indices else np.array([classes - 1, edge - 1 if place == "last" else edge])
    if recipe.ignore != "none":
        target[0] = -100
    logits, mask = call.logits, call.mask
    if place in ("first", "last"):
        logits = np.where(beyond == (place == "last"), logits.dtype.type(value), logits)
    elif place in ("NaN", "inf"):  # in one row, at one class of the last block
        logits = np.where((np.arange(2)[:, None] == 0) & (np.arange(classes) == edge), logits.dtype.type(value), logits)
    elif place == "masked":
        logits = np.where((np.arange(2)[:, None] == 0) & beyond, logits.dtype.type(value), logits)
        mask = np.array([False, True])
    options = {**call.options, "reduction": "none"} if place in ("NaN", "inf") else call.options
    return replace(call, logits=logits, target=target, mask=mask, options=options)


def _linear() -> Iterator[Case]:
    """Blocks of classes that a bias makes -inf, and blocks of features, each with its own part of every logit."""
    for width in WIDTHS:
        build = Linear(Recipe(positions=(3,), classes=9), width=width).call
        quick = width in (257, 1025)
        yield from each(f"{FUSED}/{width} features", FUSED, build, VALUE_AND_GRADIENTS, quick=quick)
    for classes in BEYOND:
        linear = Linear(Recipe(positions=(2,), classes=classes), width=4)
        yield from each(f"{FUSED}/{classes} classes", FUSED, linear.call, VALUE_AND_GRADIENTS, quick=classes == 129)
        padded = Recipe(positions=(12,), classes=classes, ignore="default", reduction="none", grad_output="uneven")
        stem, build = f"{FUSED}/{classes} classes, ignored", Linear(padded, width=4).call
        yield from each(stem, FUSED, build, VALUE_AND_GRADIENTS, quick=classes == 129)
        for place in ("first", "last"):
            build = partial(_biased, linear, place)
            stem = f"{FUSED}/{classes} classes, {place} block -inf"
            yield from each(stem, FUSED, build, VALUE_AND_GRADIENTS, quick=classes in QUICK)


def _biased(linear: Linear, place: str) -> Call:
    call, classes = linear.call(), linear.recipe.classes
    edge = block(classes)
    beyond = np.arange(classes) >= edge
    bias = np.where(beyond == (place == "last"), call.bias.dtype.type(-np.inf), call.bias)
    target = np.array([edge - 1, 0] if place == "last" else [classes - 1, edge])
    return replace(call, bias=bias, target=target)
