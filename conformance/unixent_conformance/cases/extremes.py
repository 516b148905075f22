"""What lies at the ends of an option's range, and what a plausible shortcut gets wrong there."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import VALUE_AND_GRADIENT, VALUE_AND_GRADIENTS, each, gradients, make
from unixent_conformance.cases.inputs import DTYPES, Recipe, dtype_of
from unixent_conformance.cases.linear import Linear
from unixent_conformance.model import Call, Case, Tier

CAPPED, EXTREME, EMPTY = "confident softcap", "extreme options", "empty mean of NaN"
MASK, FUSED = "broadcast mask", "fused linear broadcast mask"


def cases() -> Iterator[Case]:
    yield from _capped()
    yield from _extreme()
    yield from _empty()
    yield from _masks()


def _capped() -> Iterator[Case]:
    """Confident rows under a softcap: the loss is lost where two fusions round the capped logits differently."""
    for dtype in DTYPES:
        for target in ("one-hot", "a distribution", "index", "smoothed, others of weight 0"):
            for softcap, temperature in ((30.0, 1.0), (20.0, 1.0), (30.0, 0.7)):
                options = {"softcap": softcap, "reduction": "none"}
                if temperature != 1:
                    options["temperature"] = temperature
                build, quick = partial(_confident, dtype, target, options), dtype == "float32" and softcap == 30.0
                named = f"{softcap}, temperature {temperature}" if temperature != 1 else f"{softcap}"
                stem, needs = f"{CAPPED}/{target}, {named}/{dtype}", build().needs()
                made = [make(f"{stem}/value", CAPPED, build, needs=needs, quick=quick)]
                made += gradients(stem, CAPPED, build, needs, quick=quick)
                # Where each case is compiled, too: there it has gone wrong.
                yield from (replace(case, tiers=case.tiers | {Tier.CORE}) if quick else case for case in made)


def _confident(dtype: str, target: str, options: dict[str, Any]) -> Call:
    rng = np.random.default_rng(13)
    logits = rng.uniform(-25.0, 5.0, (16, 5))
    logits[:, 0] = rng.uniform(30.0, 60.0, 16)
    logits[0] = [48.112003, -12.546135, -5.666677, 3.342884, -21.824055]
    x = logits.astype(dtype_of(dtype))
    if target == "one-hot":
        return Call(x, np.eye(5)[np.zeros(16, int)].astype(x.dtype), options=options)
    if target == "a distribution":
        return Call(x, rng.dirichlet(np.full(5, 0.2), 16).astype(x.dtype), options=options)
    if target == "index":
        return Call(x, np.zeros(16, np.int64), options=options)
    return Call(x, np.zeros(16, np.int64), np.eye(5)[0].astype(x.dtype), options={**options, "label_smoothing": 0.1})


def _extreme() -> Iterator[Case]:
    """A softcap or a normalizer that the accumulation dtype cannot hold, and a mean whose sum it cannot hold."""
    for dtype in DTYPES:
        quick = dtype == "float32"
        for softcap in (1e300, 1e39, 1e30, 1e-30, 1e-40, 1e-50, 1e-300):
            for target in ("index", "probability"):
                build = partial(_with_zeros, Recipe(dtype=dtype, target=target, softcap=softcap, reduction="none"))
                stem, needs = f"{EXTREME}/softcap {softcap}/{target}-{dtype}", build().needs()
                yield make(f"{stem}/value", EXTREME, build, needs=needs, quick=quick)
                yield from gradients(stem, EXTREME, build, needs, quick=quick)
        for normalizer in (1e300, 1e50, 1e-30, 1e-50, 1e-300):
            build = partial(_normalized, dtype, normalizer)
            yield from each(f"{EXTREME}/normalizer {normalizer}/{dtype}", EXTREME, build, quick=quick)
        for options in ({"scale": 1e-30}, {"scale": 1e30, "softcap": 2.0}, {"softcap": 1e30, "temperature": 1e-10}):
            recipe = Recipe(dtype=dtype, softcap=options.get("softcap"), logit_scale=options.get("scale", 1.0))
            build = partial(_with_zeros, recipe.but(temperature=options.get("temperature", 1.0), reduction="none"))
            named = ", ".join(f"{name} {value}" for name, value in options.items())
            yield from each(f"{EXTREME}/{named}/{dtype}", EXTREME, build, quick=quick)
        for softcap in (1e300, 1e-50):
            build = partial(_normalized, dtype, 1e30, softcap=softcap)
            yield from each(f"{EXTREME}/softcap {softcap} and normalizer 1e30/{dtype}", EXTREME, build, quick=quick)
        build = partial(_near_zero, dtype)
        yield from each(f"{EXTREME}/z-loss of a log-normaliser near 0/{dtype}", EXTREME, build, quick=quick)
        build = partial(_huge, dtype)
        yield from each(f"{EXTREME}/a sum that overflows/{dtype}", EXTREME, build, quick=quick)


def _near_zero(dtype: str) -> Call:
    """Nothing but the z-loss, of rows whose lse is what rounding 1 + r would be seen in."""
    rng = np.random.default_rng(3)
    x = rng.normal(0.0, 10.0, (256, 7))
    x = x - np.log(np.exp(x).sum(1, keepdims=True)) + rng.uniform(-1e-3, 1e-3, (256, 1))
    x = x.astype(dtype_of(dtype))
    return Call(x, np.arange(256) % 7, np.zeros(7, x.dtype), options={"z_loss": 100.0, "reduction": "none"})


def _with_zeros(recipe: Recipe) -> Call:
    """A 0 in every row, whose quotient by the cap is 0 whatever the cap is."""
    call = recipe.call()
    return replace(call, logits=np.where(np.arange(call.logits.shape[1]) == 3, call.logits.dtype.type(0), call.logits))


def _normalized(dtype: str, normalizer: float, **options: Any) -> Call:
    call = Recipe(dtype=dtype, positions=(16,), ignore="default").call()
    return replace(call, options={"normalizer": normalizer, **options})


def _huge(dtype: str) -> Call:
    """Losses of half the largest number: eight of them are beyond it, their mean is not."""
    floating = dtype_of(dtype)
    largest = 6e4 if dtype == "float16" else 3e38 if floating.itemsize < 8 else 1.7e308
    logits = np.array([[largest / 2, 0.0]] * 8).astype(floating)
    return Call(logits, np.ones(8, np.int64))


def _empty() -> Iterator[Case]:
    """Nothing to divide by, and a NaN above it: NaN, never the 0 of an empty mean."""
    nan, zero = np.array([[0.5, np.nan, 1.0], [1.0, 2.0, 3.0]], np.float32), np.zeros(3, np.float32)
    finite, unread, target = np.nan_to_num(nan), {"validate": "off"}, np.array([0, 1])
    reasons: dict[str, Call] = {
        "normalizer 0": Call(nan, target, options={"normalizer": 0.0}),
        "normalizer array of 0": Call(nan, target, options={"normalizer": np.zeros((), np.float32)}),
        "weights of 0": Call(nan, target, zero),
        "probabilities, normalizer 0": Call(nan, finite / 4, options={"normalizer": 0.0}),
        "masked, out of range": Call(finite, target + 6, mask=zero[:2], options=unread),
        "normalizer 0, out of range": Call(finite, target + 6, options={**unread, "normalizer": 0.0}),
        "normalizer 0, NaN masked": Call(nan, target, mask=np.array([0, 1]), options={"normalizer": 0.0}),
    }
    for name, call in reasons.items():
        for on_empty in ("zero", "nan"):
            build = partial(_copied, call, options={**call.options, "on_empty": on_empty})
            yield from each(f"{EMPTY}/{name}/{on_empty}", EMPTY, build, quick=True)


def _copied(call: Call, options: dict[str, Any]) -> Call:
    return replace(deepcopy(call), options=options)


def _masks() -> Iterator[Case]:
    """A mask with 1 where it is the same for all counts as if it were written out."""
    shapes = {"the same for each row": (4, 1), "the same for each column": (1, 3), "one for all": (1, 1)}
    recipes: dict[str, Recipe | Linear] = {
        "indices": Recipe(positions=(4, 3)),
        "weights, ignored": Recipe(positions=(4, 3), weight="plain", ignore="default"),
        "probabilities, middle axis": Recipe(positions=(4, 3), target="probability", axis=1),
        "smoothing, z-loss, softcap": Recipe(positions=(4, 3), smoothing=0.1, z_loss=0.1, softcap=5.0),
        "fused": Linear(Recipe(positions=(4, 3)), chunk=5),
    }
    for name, recipe in recipes.items():
        feature = FUSED if name == "fused" else MASK
        for word, shape in shapes.items():
            for dtype in ("bool", "int64", "float32"):
                for reduction in ("none", "mean"):
                    build, quick = partial(_masked, recipe, shape, dtype, reduction), dtype + reduction == "float32mean"
                    stem = f"{feature}/{name}, {word}/{dtype}-{reduction}"
                    questions = VALUE_AND_GRADIENTS if name == "fused" else VALUE_AND_GRADIENT
                    yield from each(stem, feature, build, questions, quick=quick)
                if name != "fused":
                    build = partial(_masked, recipe, shape, dtype, "mean")
                    yield make(f"{MASK}/{name}, {word}/{dtype}-terms", MASK, build, "terms")


def _masked(recipe: Recipe | Linear, shape: tuple[int, ...], dtype: str, reduction: str) -> Call:
    call = recipe.call()
    mask: Any = np.random.default_rng(17).uniform(0.2, 2.0, shape) * (np.arange(max(shape)).reshape(shape) != 1)
    options = call.options if reduction == "mean" else {**call.options, "reduction": reduction}
    return replace(call, mask=(np.ceil(mask) if dtype == "int64" else mask).astype(dtype), options=options)
