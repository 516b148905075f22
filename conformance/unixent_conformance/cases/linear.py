"""The fused linear form: every option, every chunk, special values through hidden and bias, half precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np

from unixent_conformance.cases import linear_special
from unixent_conformance.cases.building import VALUE_AND_GRADIENTS, each, make
from unixent_conformance.cases.inputs import DTYPES, HALF, Recipe, dtype_of
from unixent_conformance.cases.linear_half import no_worse_than_unfused
from unixent_conformance.cases.options import VARIANTS
from unixent_conformance.model import Array, Call, Case

FEATURE = "fused linear"
CHUNKS = "fused linear chunks"
HALVES = "fused linear half precision"
FROZEN = "fused linear frozen arguments"

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class Linear:
    """A fused call to make: the recipe's, with its logits replaced by what they are made of."""

    recipe: Recipe
    width: int = 6
    bias: bool = True
    classifier_dtype: str | None = None
    chunk: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def call(self) -> Call:
        """Logits have the recipe's scale; the same arrays for every chunk and reduction."""
        r, call = self.recipe, self.recipe.call()
        rng = np.random.default_rng(crc32(f"{r.positions}{r.classes}{r.seed}{self.width}".encode()))
        floating, given = dtype_of(r.dtype), dtype_of(self.classifier_dtype or r.dtype)
        hidden = rng.normal(0.0, 1.0, (*r.positions, self.width))
        classifier = rng.normal(0.0, r.scale / np.sqrt(self.width), (r.classes, self.width))
        bias = rng.normal(r.offset, 1.0, r.classes)
        if r.confident:
            classifier = _towards(hidden, classifier, call.target, r)
        chunk = {} if self.chunk is None else {"chunk": self.chunk}
        return replace(
            call,
            logits=None,
            hidden=hidden.astype(floating),
            classifier=classifier.astype(given),
            bias=bias.astype(given) if self.bias else None,
            options={**call.options, **chunk, **self.options},
        )


INDEX = Recipe(positions=(13,), classes=9)
PROBABILITY = INDEX.but(target="probability")

# What the options of the unfused form do not reach, by name.
SHAPES: dict[str, Linear] = {
    "without bias": Linear(INDEX, bias=False),
    "without bias, probabilities": Linear(PROBABILITY, bias=False),
    "one class": Linear(INDEX.but(classes=1)),
    "one position": Linear(INDEX.but(positions=(1,))),
    "one feature": Linear(INDEX, width=1),
    "no position axis": Linear(INDEX.but(positions=())),
    "three position axes": Linear(INDEX.but(positions=(2, 3, 4))),
    "no positions": Linear(INDEX.but(positions=(0,))),
    "no positions in two axes": Linear(INDEX.but(positions=(2, 0))),
    "many features": Linear(INDEX, width=1024),
    "many classes": Linear(INDEX.but(positions=(3,), classes=5000)),
    "confident": Linear(INDEX.but(positions=(5,), classes=5, confident=20.0), width=8),
    "dtype of the result": Linear(INDEX, options={"dtype": "float64"}),
    "wider classifier": Linear(INDEX, classifier_dtype="float64"),
    "narrower classifier": Linear(INDEX, classifier_dtype="float16"),
}

# Sizes of N = 23: one, dividing nothing, one less, N itself, more than N.
CHUNKED = (1, 5, 22, 23, 1000)
LONG = INDEX.but(positions=(23,))
CHUNK_RECIPES: dict[str, Recipe] = {
    "mean": LONG,
    "weights, ignored": LONG.but(weight="plain", ignore="default"),
    "mask, none": LONG.but(mask="fraction", reduction="none"),
    "smoothing, z-loss, softcap": LONG.but(smoothing=0.1, z_loss=0.01, softcap=5.0),
    "scale, softcap, temperature": LONG.but(logit_scale=0.5, softcap=5.0, temperature=0.7),
    "probabilities, sum": LONG.but(target="probability", reduction="sum"),
    "two position axes": INDEX.but(positions=(5, 4)),
    "ignored rows fill a chunk": LONG.but(ignore="default", seed=3),
}


def cases() -> Iterator[Case]:
    yield from _options()
    yield from _shapes()
    yield from _chunks()
    yield from _halves()
    yield from _frozen()
    yield from linear_special.cases()


def _options() -> Iterator[Case]:
    """Every variant of every option of the unfused form, in every dtype; the reductions in turn. Each option's first
    variant has neither bias nor chunk, for fused functions that take none; every other one has no chunk."""
    for feature, variants in VARIANTS.items():
        for turn, (name, recipe) in enumerate(variants.items()):
            if recipe.axis != -1:
                continue  # the class axis is the classifier's
            for dtype in DTYPES:
                # A normaliser is a mean's.
                chosen = "mean" if recipe.normalizer != "none" else REDUCTIONS[(turn + DTYPES.index(dtype)) % 3]
                at = Linear(recipe.but(dtype=dtype, reduction=chosen), bias=turn > 0, chunk=4 if turn % 2 else None)
                quick = dtype == "float32" and turn < 2
                yield from pair(FEATURE, f"{feature}/{name}/{dtype}-{chosen}", at, quick)


def _shapes() -> Iterator[Case]:
    for name, linear in SHAPES.items():
        for reduction in REDUCTIONS:
            at = replace(linear, recipe=linear.recipe.but(reduction=reduction))
            yield from pair(FEATURE, f"{name}/{reduction}", at, quick=reduction == "mean")


def _chunks() -> Iterator[Case]:
    """The answer does not depend on the chunk: each is held against the same truth."""
    for name, recipe in CHUNK_RECIPES.items():
        for dtype in ("float32", *HALF):
            for chunk in CHUNKED:
                at = Linear(recipe.but(dtype=dtype), chunk=chunk)
                yield from pair(CHUNKS, f"{name}/{dtype}/{chunk}", at, quick=dtype == "float32" and chunk == 5)


def _halves() -> Iterator[Case]:
    """A long sum over positions in small chunks, logits beyond the half's range, and the unfused form beside ours."""
    yield from each(f"{HALVES}/logits beyond float16", HALVES, _beyond_float16, VALUE_AND_GRADIENTS, quick=True)
    for dtype in HALF:
        long = INDEX.but(positions=(300,), dtype=dtype, classes=4, confident=1.0)
        for reduction in ("mean", "sum"):
            at = Linear(long.but(reduction=reduction), chunk=2, options={"dtype": "float32"})
            yield from pair(HALVES, f"many chunks/{dtype}/{reduction}", at, quick=dtype == "bfloat16")
        for name, recipe in {
            "large logits": INDEX.but(scale=30.0, positions=(40,)),
            "many classes": INDEX.but(scale=4.0, classes=500, positions=(40,)),
            "probabilities": PROBABILITY.but(scale=10.0, positions=(40,)),
            "smoothing, z-loss": INDEX.but(scale=10.0, smoothing=0.1, z_loss=0.01, positions=(40,)),
        }.items():
            at = Linear(recipe.but(dtype=dtype, reduction="none"), width=32, chunk=7)
            yield from pair(HALVES, f"{name}/{dtype}", at)
            id, quick = f"{HALVES}/{name}/{dtype}/no worse than unfused", name == "large logits"
            yield make(id, HALVES, at.call, "linear gradients", property=no_worse_than_unfused, quick=quick)


def _beyond_float16() -> Call:
    """Hidden states and a classifier that float16 holds, with products that it does not."""
    call = Linear(INDEX.but(dtype="float16", scale=1e4), width=1, chunk=7, options={"dtype": "float32"}).call()
    return replace(call, hidden=call.hidden * call.hidden.dtype.type(4))


def _frozen() -> Iterator[Case]:
    """A head that is not trained, or nothing but the head: gradients of some arguments, none of the others."""
    for dtype in ("float32", *HALF):
        for reduction in REDUCTIONS:
            for bias in (False, True):
                linear = Linear(INDEX.but(dtype=dtype, reduction=reduction, grad_output="uneven"), bias=bias)
                names = linear.call().differentiable()
                for asked in [(name,) for name in names] + ([names[1:], names[::2]] if bias else []):
                    frozen = tuple(name for name in names if name not in asked)
                    id = f"{FROZEN}/{' and '.join(asked)} of {len(names)}/{dtype}-{reduction}"
                    quick = dtype == "float32" and reduction == "mean"
                    build = partial(_with_frozen, linear, frozen)
                    yield make(id, FROZEN, build, "linear gradients", quick=quick)


def _with_frozen(linear: Linear, frozen: tuple[str, ...]) -> Call:
    return replace(linear.call(), frozen=frozen)


def pair(feature: str, stem: str, linear: Linear, quick: bool = False) -> Iterator[Case]:
    """The value, and the gradients of hidden, classifier, bias and probabilities under an uneven upstream gradient."""
    yield make(f"{feature}/{stem}/value", feature, linear.call, quick=quick)
    recipe = linear.recipe.but(grad_output="none" if linear.options.get("dtype") else "uneven")
    build = replace(linear, recipe=recipe).call
    yield make(f"{feature}/{stem}/gradients", feature, build, "linear gradients", quick=quick)


def _towards(hidden: Array, classifier: Array, target: Array, recipe: Recipe) -> Array:
    """A classifier that also gives each target's logit about `confident` more: h moved into the rows of its class."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    moved = np.array(classifier)
    for row, label in zip(rows, target.reshape(-1), strict=True):
        moved[label] += recipe.confident * row / (row @ row)
    return moved
