"""One option at a time, on the plainest call: a failure here names the option."""

from __future__ import annotations

from collections.abc import Iterator

from unixent_conformance.cases.building import from_recipe, make
from unixent_conformance.cases.inputs import DTYPES, HALF, Recipe
from unixent_conformance.model import Case

INDEX = Recipe()
PROBABILITY = Recipe(target="probability")

# feature -> variants of the plain call, by name
VARIANTS: dict[str, dict[str, Recipe]] = {
    "class indices": {
        "plain": INDEX,
        "two classes": INDEX.but(classes=2),
        "many positions": INDEX.but(positions=(257,), classes=33),
        "wide": INDEX.but(positions=(3,), classes=1000),
    },
    "class probabilities": {
        "plain": PROBABILITY,
        "one-hot": INDEX.but(target="one-hot"),
        "unnormalised": INDEX.but(target="unnormalised"),
        "wide": PROBABILITY.but(positions=(3,), classes=1000),
    },
    "class weights": {
        "indices": INDEX.but(weight="plain"),
        "indices, some zero": INDEX.but(weight="zeros", positions=(16,)),
        "probabilities": PROBABILITY.but(weight="plain"),
        "probabilities, some zero": PROBABILITY.but(weight="zeros"),
    },
    "ignore_index": {
        "the default": INDEX.but(ignore="default", positions=(16,)),
        "inside the classes": INDEX.but(ignore="inside", positions=(40,)),
        "outside the classes": INDEX.but(ignore="outside", positions=(16,)),
        "with weights": INDEX.but(ignore="default", weight="plain", positions=(16,)),
    },
    "mask": {
        "bool": INDEX.but(mask="bool", positions=(4, 4)),
        "integer": INDEX.but(mask="int", positions=(16,)),
        "fractions": INDEX.but(mask="fraction", positions=(16,)),
        "fractions that sum to less than 1": INDEX.but(mask="faint", positions=(16,)),
        "fractions, probabilities": PROBABILITY.but(mask="fraction", positions=(16,)),
        "fractions, weights": INDEX.but(mask="fraction", weight="plain", positions=(16,)),
    },
    "label smoothing": {
        "a tenth": INDEX.but(smoothing=0.1),
        "all of it": INDEX.but(smoothing=1.0),
        "with weights": INDEX.but(smoothing=0.3, weight="plain"),
        "with zero weights": INDEX.but(smoothing=0.3, weight="zeros"),
        "ignored positions": INDEX.but(smoothing=0.3, ignore="default", positions=(16,)),
        "probabilities": PROBABILITY.but(smoothing=0.1),
        "probabilities with weights": PROBABILITY.but(smoothing=0.3, weight="plain"),
    },
    "z-loss": {
        "plain": INDEX.but(z_loss=0.01),
        "large": INDEX.but(z_loss=1.0, offset=5.0),
        "negative log-normaliser": INDEX.but(z_loss=0.1, offset=-20.0),
        "with weights": INDEX.but(z_loss=0.1, weight="plain"),
        "with a mask": INDEX.but(z_loss=0.1, mask="fraction", positions=(16,)),
        "ignored positions": INDEX.but(z_loss=0.1, ignore="default", positions=(16,)),
        "probabilities": PROBABILITY.but(z_loss=0.1),
        "with smoothing": INDEX.but(z_loss=0.1, smoothing=0.2),
        "one class": INDEX.but(z_loss=0.1, classes=1),
    },
    "softcap": {
        "gentle": INDEX.but(softcap=30.0),
        "hard": INDEX.but(softcap=2.0, scale=5.0),
        "with z-loss": INDEX.but(softcap=5.0, z_loss=0.1),
        "with smoothing": INDEX.but(softcap=5.0, smoothing=0.1),
        "probabilities": PROBABILITY.but(softcap=5.0),
        "saturated": INDEX.but(softcap=4.0, scale=20.0),
    },
    "temperature": {
        "below 1": INDEX.but(temperature=0.7),
        "above 1": INDEX.but(temperature=3.0),
        "scale": INDEX.but(logit_scale=0.125),
        "scale and temperature": INDEX.but(logit_scale=1.3, temperature=0.6),
        "around a softcap": INDEX.but(logit_scale=2.0, softcap=5.0, temperature=0.7),
        "around a saturated softcap": INDEX.but(logit_scale=3.0, softcap=4.0, temperature=0.3, scale=10.0),
        "with z-loss": INDEX.but(logit_scale=0.5, temperature=0.7, z_loss=0.1),
        "with smoothing": INDEX.but(temperature=0.7, smoothing=0.1, weight="plain"),
        "probabilities": PROBABILITY.but(temperature=0.7),
        "probabilities, around a softcap": PROBABILITY.but(logit_scale=0.5, softcap=5.0, temperature=0.7),
        "confident rows": INDEX.but(temperature=0.5, confident=20.0),
    },
    "axis and shape": {
        "first axis": INDEX.but(axis=0),
        "first of three": INDEX.but(positions=(3, 4), axis=0),
        "second of three": INDEX.but(positions=(3, 4), axis=1),
        "second of four": INDEX.but(positions=(2, 3, 2), axis=1),
        "counted from the end": INDEX.but(positions=(3, 4), axis=-2),
        "probabilities, second of three": PROBABILITY.but(positions=(3, 4), axis=1),
        "no position axis": INDEX.but(positions=()),
        "no position axis, probabilities": PROBABILITY.but(positions=()),
        "one class": INDEX.but(classes=1),
        "one class, probabilities": PROBABILITY.but(classes=1, target="unnormalised"),
        "three position axes": INDEX.but(positions=(2, 3, 2)),
        "mask and second axis": INDEX.but(positions=(3, 4), axis=1, mask="fraction"),
    },
    "normalizer": {
        "float": INDEX.but(normalizer="float"),
        "array": INDEX.but(normalizer="array"),
        "with weights": INDEX.but(normalizer="float", weight="plain", mask="fraction"),
        "ignored positions": INDEX.but(normalizer="float", ignore="default", positions=(16,)),
        "probabilities": PROBABILITY.but(normalizer="float"),
    },
}


def cases() -> Iterator[Case]:
    """Every variant in every dtype and reduction: value, gradient, and, once per dtype, terms."""
    for feature, variants in VARIANTS.items():
        for name, recipe in variants.items():
            for dtype in DTYPES:
                reductions = ("mean",) if recipe.normalizer != "none" else ("none", "sum", "mean")
                for reduction in reductions:
                    # Quick: every variant once, the reductions in turn, and what is plain in half precision too; a mean
                    # also where positions do not count alike.
                    half = dtype in HALF and recipe in (INDEX, PROBABILITY)
                    due = {reductions[len(name) % len(reductions)], *(["mean"] if _uneven(recipe) else [])}
                    quick = (half or dtype == "float32") and reduction in due
                    at = recipe.but(dtype=dtype, reduction=reduction)
                    yield from from_recipe(f"{feature}/{name}/{dtype}-{reduction}", feature, at, quick=quick)
                at = recipe.but(dtype=dtype, reduction="mean", normalizer="none")
                quick = dtype == "float32" and name == next(iter(variants))
                id = f"{feature}/{name}/{dtype}-terms"
                yield make(id, feature, at.call, "terms", needs=at.needs(), quick=quick)


def _uneven(recipe: Recipe) -> bool:
    return (recipe.weight, recipe.ignore, recipe.mask) != ("none", "none", "none")
