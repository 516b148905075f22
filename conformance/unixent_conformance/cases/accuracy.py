"""Where arithmetic is lost: confident rows, many classes, many positions, sums in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import each, make
from unixent_conformance.cases.inputs import DTYPES, HALF, Recipe, dtype_of
from unixent_conformance.model import Call, Case

CONFIDENT, LARGE = "confident rows", "large inputs"


def cases() -> Iterator[Case]:
    yield from _confident()
    yield from _large()


def _confident() -> Iterator[Case]:
    for dtype in DTYPES:
        for gap in (5, 10, 16, 20, 40, 80, 86, 95, 300, 700):
            if gap > 90 and dtype != "float64":
                continue  # below the smallest normal number of the accumulation
            recipe = Recipe(dtype=dtype, positions=(9,), confident=float(gap), scale=0.7, reduction="none")
            quick = dtype == "float32" and gap in (20, 80)
            variants = {"": recipe, " smoothed": recipe.but(smoothing=0.1), " z-loss": recipe.but(z_loss=0.01)}
            for name, variant in variants.items():
                yield from _both(f"{gap} ahead{name}/{dtype}", CONFIDENT, variant, quick)
            hopeless = recipe.but(confident=-float(gap))
            yield from _both(f"{gap} behind/{dtype}", CONFIDENT, hopeless, quick and gap == 20)
            hot = recipe.but(target="one-hot", weight="plain")
            yield from _both(f"{gap} ahead one-hot/{dtype}", CONFIDENT, hot, quick and gap == 20)
        stem, quick = f"confident-rows/20-against-0/{dtype}", dtype == "float32"
        yield from each(stem, CONFIDENT, partial(_known, dtype), quick=quick)
        for gap in (8, 30, 80):
            stem = f"confident-rows/gaps-of-{gap}-that-no-float-holds/{dtype}"
            yield from each(stem, CONFIDENT, partial(_uneven_gaps, dtype, gap), quick=quick)


def _both(name: str, feature: str, recipe: Recipe, quick: bool = False) -> Iterator[Case]:
    yield from each(f"{feature}/{name}", feature, recipe.call, needs=recipe.needs(), quick=quick)


def _known(dtype: str) -> Call:
    """[20, 0] with class 0: 2.06e-9, where 1 - p and -log p in float32 give 0."""
    return Call(np.array([[20.0, 0.0]]).astype(dtype_of(dtype)), np.array([0]), options={"reduction": "none"})


def _uneven_gaps(dtype: str, gap: float) -> Call:
    """A target far above logits of a finer exponent: the differences are not representable, so that rounding them
    costs up to u * gap in every exponential."""
    rng = np.random.default_rng(7)
    x = rng.uniform(0.01, 0.02, (64, 5))
    y = rng.integers(0, 5, 64)
    x[np.arange(64), y] = gap + rng.uniform(0.0, 4.0, 64)
    return Call(x.astype(dtype_of(dtype)), y, options={"reduction": "none"})


def _large() -> Iterator[Case]:
    for dtype in DTYPES:
        recipe = Recipe(dtype=dtype, positions=(2,), classes=151_936, reduction="none", grad_output="uneven")
        yield from _both(f"151936 classes/{dtype}", LARGE, recipe)
        # Logits of a scale at which most entries of the gradient are near 1e-6.
        recipe = Recipe(dtype=dtype, positions=(8,), classes=32_000, reduction="mean", scale=3.5)
        yield from _both(f"32000 classes/{dtype}", LARGE, recipe, quick=dtype == "float32")
        recipe = recipe.but(smoothing=0.1, z_loss=1e-4, softcap=30.0)
        yield from _both(f"32000 classes with everything/{dtype}", LARGE, recipe)
    for reduction in ("none", "sum"):  # more than 2^20 logits
        recipe = Recipe(positions=(1030,), classes=1030, ignore="default", reduction=reduction, grad_output="uneven")
        yield from _both(f"1030 rows of 1030 classes/{reduction}", LARGE, recipe)
    for dtype in (*HALF, "float32"):
        large: dict[str, Any] = {"feature": LARGE, "needs": frozenset({f"dtype:{dtype}", "target:index"})}
        equal = partial(_equal, dtype, 3, 70_000, "none")
        yield from each(f"{LARGE}/70000 equal logits/{dtype}", build=equal, quick=True, **large)
        many = partial(_many, dtype)
        yield make(f"{LARGE}/70000 uneven rows/{dtype}/terms", build=many, quantity="terms", **large)
        yield from each(f"{LARGE}/70000 uneven rows/mean/{dtype}", build=many, **large)
        rows = partial(_equal, dtype, 100_000, 3)
        yield make(f"{LARGE}/100000 rows/{dtype}/terms", build=rows, quantity="terms", **large)
        for reduction in ("mean", "sum", "none"):
            yield from each(f"{LARGE}/100000 rows/{reduction}/{dtype}", build=partial(rows, reduction), **large)


def _equal(dtype: str, n: int, classes: int, reduction: str = "mean") -> Call:
    """Loss ln C everywhere: a sum over classes or positions in half precision stalls or overflows."""
    logits = np.full((n, classes), 1.5).astype(dtype_of(dtype))
    return Call(logits, np.arange(n) % classes, options={} if reduction == "mean" else {"reduction": reduction})


def _many(dtype: str) -> Call:
    """More counted tokens than float16 can count, with fractions and weights."""
    rng = np.random.default_rng(11)
    floating = dtype_of(dtype)
    logits = rng.normal(0.0, 2.0, (70_000, 4)).astype(floating)
    mask = rng.uniform(0.5, 1.0, 70_000).astype(floating)
    weight = np.array([1.0, 2.0, 1.5, 0.5]).astype(floating)
    return Call(logits, rng.integers(0, 4, 70_000), weight, mask)
