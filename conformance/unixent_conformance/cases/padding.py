"""Classes that do not exist, through every option: logits of -inf, or whatever lies beyond `num_classes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import VALUE_AND_GRADIENT, VALUE_AND_GRADIENTS, each, refused
from unixent_conformance.cases.inputs import DTYPES, Recipe
from unixent_conformance.cases.linear import Linear
from unixent_conformance.model import Array, Call, Case, Quantity, Raises, Tier

INFINITE, DECLARED, FUSED = "minus infinity padding", "num_classes", "fused linear padding"

EXTRA = 3
FILLS = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf, "6e4": 6e4}

INDEX = Recipe(positions=(6,), classes=5)
PROBABILITY = INDEX.but(target="unnormalised")
UNCAPPED: dict[str, Recipe] = {
    "indices": INDEX,
    "probabilities": PROBABILITY,
    "smoothing": INDEX.but(smoothing=0.1),
    "smoothing, probabilities": PROBABILITY.but(smoothing=0.3),
    "weights": INDEX.but(weight="plain"),
    "weights, probabilities": PROBABILITY.but(weight="plain"),
    "z-loss": INDEX.but(z_loss=0.1),
    "mask": INDEX.but(mask="fraction", ignore="default", positions=(12,)),
    "first axis": INDEX.but(axis=0),
    "middle axis, probabilities": PROBABILITY.but(positions=(2, 3), axis=1),
    "one class": INDEX.but(classes=1),
    "confident": INDEX.but(confident=20.0),
    "everything": INDEX.but(weight="plain", smoothing=0.1, z_loss=0.1, mask="fraction"),
}
VARIANTS = {**UNCAPPED, **{f"{name}, capped": recipe.but(softcap=5.0) for name, recipe in UNCAPPED.items()}}
# Options that `num_classes` may make a kernel forget, each alone beside it.
ALONE = {
    "mask alone": INDEX.but(mask="fraction", grad_output="uneven"),
    "scale": INDEX.but(logit_scale=0.5, grad_output="uneven"),
    "temperature": INDEX.but(temperature=0.7, grad_output="uneven"),
    "normalizer": INDEX.but(normalizer="float", grad_output="uneven"),
}
# The forward mode has few cases: these too, where a tangent of 0 meets an infinity.
FEW = ("probabilities", "probabilities, capped")


def padded(build: Callable[[], Call], fill: float, declared: bool, extra: int = EXTRA) -> Call:
    """A call with `extra` classes more: beyond its `num_classes` and full of `fill`, or of logits that are -inf."""
    call = build()
    axis, classes = call.options.get("axis", -1), len(call.classifier) if call.linear else 0
    beyond = fill if declared else 0.0

    def wider(array: Array | None, value: float, axis: int = 0) -> Array | None:
        if array is None:
            return None
        widths = [(0, extra if i == axis % array.ndim else 0) for i in range(array.ndim)]
        return np.pad(array, widths, constant_values=np.asarray(value).astype(array.dtype))

    if call.linear:
        call = replace(call, classifier=wider(call.classifier, beyond), bias=wider(call.bias, fill))
    else:
        classes = call.logits.shape[axis]
        call = replace(call, logits=wider(call.logits, fill, axis))
    if not call.has_indices:
        call = replace(call, target=wider(call.target, beyond, axis))
    if declared:
        return replace(call, options={**call.options, "num_classes": classes})
    smoothed = "label_smoothing" in call.options
    if smoothed and call.weight is None:
        call = replace(call, weight=np.ones(classes, np.float32))
    return replace(call, weight=wider(call.weight, 0.0 if smoothed else 1.0))


def cases() -> Iterator[Case]:
    fills = list(FILLS.items())
    for turn, (name, recipe) in enumerate(VARIANTS.items()):
        for dtype in DTYPES:
            at = turn + DTYPES.index(dtype)
            made, quick = recipe.but(dtype=dtype, reduction=("none", "mean", "sum")[at % 3]), dtype == "float32"
            few = quick and name in FEW
            stem = f"{name}/{dtype}-{made.reduction}"
            yield from _padded(f"{INFINITE}/{stem}", INFINITE, made, -np.inf, False, quick, few)
            word, fill = fills[at % len(fills)]
            yield from _padded(f"{DECLARED}/{stem}-{word}", DECLARED, made, fill, True, quick)
            if recipe.axis != -1:
                continue
            fused = Linear(made, width=4, bias=True, chunk=4 if turn % 2 else None)
            yield from _padded(f"{FUSED}/minus infinity, {stem}", FUSED, fused, -np.inf, False, quick and turn % 3 == 0)
            fused = replace(fused, bias=turn % 4 != 0)
            yield from _padded(f"{FUSED}/{stem}-{word}", FUSED, fused, fill, True, quick)
    for word, fill in FILLS.items():
        for name, recipe in {"indices": INDEX, "probabilities": PROBABILITY}.items():
            for softcap in (None, 5.0):
                made, stem = recipe.but(softcap=softcap, reduction="none"), f"{name}, softcap {softcap}, {word}"
                yield from _padded(f"{DECLARED}/{stem}", DECLARED, made, fill, True)
                yield from _padded(f"{FUSED}/{stem}", FUSED, Linear(made, width=4), fill, True)
    for name, recipe in ALONE.items():
        build = partial(padded, recipe.call, np.nan, True)
        yield from each(f"{DECLARED}/{name}", DECLARED, build, VALUE_AND_GRADIENT[1:], quick=True)
        build = partial(padded, Linear(recipe, width=4).call, np.nan, True)
        yield from each(f"{FUSED}/{name}", FUSED, build, VALUE_AND_GRADIENTS[1:])
    yield from _padded(f"{DECLARED}/all of them", DECLARED, INDEX.but(smoothing=0.1), 0.0, True, extra=0)
    yield from _targets()
    yield from _errors()


def _padded(
    stem: str,
    feature: str,
    recipe: Recipe | Linear,
    fill: float,
    declared: bool,
    quick: bool = False,
    few: bool = False,
    extra: int = EXTRA,
) -> Iterator[Case]:
    """The value, every gradient, and the two terms."""
    options = {"quick": quick, "needs": padded(recipe.call, fill, declared, extra).needs()}
    gradients: list[tuple[Quantity, str]] = [("linear gradients", "gradients")]
    terms: list[tuple[Quantity, str]] = []
    if isinstance(recipe, Recipe):
        gradients = [("logits gradient", "gradient"), ("target gradient", "target-gradient")]
        gradients = gradients[: 1 if recipe.target == "index" else 2]
        terms = [("terms", "terms")] if recipe.reduction == "mean" else []
        upstream: Recipe | Linear = recipe.but(grad_output="uneven")
    else:
        upstream = replace(recipe, recipe=recipe.recipe.but(grad_output="uneven"))
    build = partial(padded, recipe.call, fill, declared, extra)
    yield from each(stem, feature, build, (("loss", "value"), *terms), **options)
    for case in each(stem, feature, partial(padded, upstream.call, fill, declared, extra), tuple(gradients), **options):
        yield replace(case, tiers=case.tiers | {Tier.FEW}) if few else case


def _targets() -> Iterator[Case]:
    """An index in the padding is no class; it may be the one that is ignored."""
    due = Raises("TargetRangeError", "target", ("6", "5"))
    recipes: dict[str, Recipe | Linear] = {"": INDEX, "fused, ": Linear(INDEX, width=4)}
    for prefix, recipe in recipes.items():
        feature = FUSED if prefix else DECLARED
        for name, target, options in (
            ("a target in the padding", 6, {}),
            ("a target in the padding, unread", 6, {"validate": "off"}),
            ("a target in the padding, unread and smoothed", 6, {"validate": "off", "label_smoothing": 0.1}),
            ("the last class", 4, {}),
            ("ignored in the padding", 6, {"ignore_index": 6}),
        ):
            build = partial(_aimed, recipe.call, target, options)
            raises = due if target == 6 and not options else None
            questions = VALUE_AND_GRADIENTS if prefix else VALUE_AND_GRADIENT
            yield from each(f"{feature}/{prefix}{name}", feature, build, questions, raises=raises, quick=True)


def _aimed(build: Callable[[], Call], target: int, options: dict[str, Any]) -> Call:
    call = padded(build, np.nan, True)
    aimed = np.where(np.arange(len(call.target)) == 2, target, call.target)
    return replace(call, target=aimed, options={**call.options, "reduction": "none", **options})


# name -> error, argument, changes of the call, changes of its options
WRONG: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "none": ("OptionError", "num_classes", {}, {"num_classes": 0}),
    "fewer than none": ("OptionError", "num_classes", {}, {"num_classes": -1}),
    "more than there are": ("OptionError", "num_classes", {}, {"num_classes": 9}),
    "no int": ("OptionError", "num_classes", {}, {"num_classes": 5.0}),
    "True": ("OptionError", "num_classes", {}, {"num_classes": True}),
    "a weight for the padding": ("ShapeError", "weight", {"weight": np.ones(8, np.float32)}, {}),
}


def _errors() -> Iterator[Case]:
    for name, (error, argument, changes, options) in WRONG.items():
        yield from refused(name, DECLARED, partial(_wrong, changes, options), error, argument)


def _wrong(changes: dict[str, Any], options: dict[str, Any]) -> Call:
    call = padded(INDEX.call, 0.0, True)
    return replace(call, **changes, options={**call.options, **options})
