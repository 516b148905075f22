"""Bad input: an error of the right class, naming the argument. One loud failure beats any plausible number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import VALUE_AND_GRADIENT, Questions, refused
from unixent_conformance.cases.inputs import Recipe
from unixent_conformance.model import Call, Case

FEATURE = "bad input"

INDEX = Recipe(positions=(2, 3), classes=4)
PROBABILITY = INDEX.but(target="probability")


def zeros(*shape: int, dtype: str = "float32") -> Any:
    return np.zeros(shape, dtype)


# name -> error, the argument that its text names, the recipe, what is changed in the call
CHANGED: dict[str, tuple[str, str, Recipe, dict[str, Any]]] = {
    "target of another shape": ("ShapeError", "target", INDEX, {"target": zeros(3, 2, dtype="int64")}),
    "target with the class axis": ("ShapeError", "target", INDEX, {"target": zeros(2, 3, 4, dtype="int64")}),
    "target that would broadcast": ("ShapeError", "target", INDEX, {"target": zeros(1, 3, dtype="int64")}),
    "0-d target": ("ShapeError", "target", INDEX, {"target": zeros(dtype="int64")}),
    "probabilities without the class axis": ("ShapeError", "target", INDEX, {"target": zeros(2, 3)}),
    "probabilities of fewer classes": ("ShapeError", "target", INDEX, {"target": zeros(2, 3, 3)}),
    "probabilities that would broadcast": ("ShapeError", "target", INDEX, {"target": zeros(1, 3, 4)}),
    "bool target": ("DTypeError", "target", INDEX, {"target": zeros(2, 3, dtype="bool")}),
    "complex target": ("DTypeError", "target", INDEX, {"target": zeros(2, 3, 4, dtype="complex64")}),
    "integer logits": ("DTypeError", "logits", INDEX, {"logits": zeros(2, 3, 4, dtype="int64")}),
    "bool logits": ("DTypeError", "logits", INDEX, {"logits": zeros(2, 3, 4, dtype="bool")}),
    "complex logits": ("DTypeError", "logits", INDEX, {"logits": zeros(2, 3, 4, dtype="complex64")}),
    "0-d logits": ("ShapeError", "logits", INDEX, {"logits": zeros(), "target": zeros(dtype="int64")}),
    "no classes": ("ShapeError", "logits", INDEX, {"logits": zeros(2, 3, 0)}),
    "weight of fewer classes": ("ShapeError", "weight", INDEX, {"weight": zeros(3)}),
    "0-d weight": ("ShapeError", "weight", INDEX, {"weight": zeros()}),
    "weight per position": ("ShapeError", "weight", INDEX, {"weight": zeros(2, 3)}),
    "integer weight": ("DTypeError", "weight", INDEX, {"weight": np.ones(4, np.int64)}),
    "complex weight": ("DTypeError", "weight", INDEX, {"weight": zeros(4, dtype="complex64")}),
    "mask of another shape": ("ShapeError", "mask", INDEX, {"mask": zeros(3, 2)}),
    "mask that would broadcast": ("ShapeError", "mask", INDEX, {"mask": zeros(3)}),
    "mask with the class axis": ("ShapeError", "mask", INDEX, {"mask": zeros(2, 3, 4)}),
    "complex mask": ("DTypeError", "mask", INDEX, {"mask": zeros(2, 3, dtype="complex64")}),
}

# name -> error, argument, recipe, options
OPTIONS: dict[str, tuple[str, str, Recipe, dict[str, Any]]] = {
    "axis too high": ("OptionError", "axis", INDEX, {"axis": 3}),
    "axis too low": ("OptionError", "axis", INDEX, {"axis": -4}),
    "axis that is no int": ("OptionError", "axis", INDEX, {"axis": 1.0}),
    "unknown reduction": ("OptionError", "reduction", INDEX, {"reduction": "avg"}),
    "reduction None": ("OptionError", "reduction", INDEX, {"reduction": None}),
    "ignore_index that is no int": ("OptionError", "ignore_index", INDEX, {"ignore_index": 0.5}),
    "ignore_index None": ("OptionError", "ignore_index", INDEX, {"ignore_index": None}),
    "ignore_index beside probabilities": ("OptionError", "ignore_index", PROBABILITY, {"ignore_index": 1}),
    "negative smoothing": ("OptionError", "label_smoothing", INDEX, {"label_smoothing": -0.1}),
    "smoothing above 1": ("OptionError", "label_smoothing", INDEX, {"label_smoothing": 1.1}),
    "smoothing NaN": ("OptionError", "label_smoothing", INDEX, {"label_smoothing": float("nan")}),
    "negative z_loss": ("OptionError", "z_loss", INDEX, {"z_loss": -1e-4}),
    "z_loss NaN": ("OptionError", "z_loss", INDEX, {"z_loss": float("nan")}),
    "softcap 0": ("OptionError", "softcap", INDEX, {"softcap": 0.0}),
    "negative softcap": ("OptionError", "softcap", INDEX, {"softcap": -30.0}),
    "softcap NaN": ("OptionError", "softcap", INDEX, {"softcap": float("nan")}),
    "scale 0": ("OptionError", "scale", INDEX, {"scale": 0.0}),
    "negative scale": ("OptionError", "scale", INDEX, {"scale": -1.0}),
    "scale NaN": ("OptionError", "scale", INDEX, {"scale": float("nan")}),
    "temperature 0": ("OptionError", "temperature", INDEX, {"temperature": 0.0}),
    "negative temperature": ("OptionError", "temperature", INDEX, {"temperature": -0.7}),
    "temperature NaN": ("OptionError", "temperature", INDEX, {"temperature": float("nan")}),
    "temperature that float32 turns into 0": ("OptionError", "temperature", INDEX, {"temperature": 1e-50}),
    "unknown on_empty": ("OptionError", "on_empty", INDEX, {"on_empty": "ignore"}),
    "unknown validate": ("OptionError", "validate", INDEX, {"validate": "always"}),
    "integer dtype": ("OptionError", "dtype", INDEX, {"dtype": "int32"}),
    "unknown dtype": ("OptionError", "dtype", INDEX, {"dtype": "float12"}),
    "normalizer under sum": ("OptionError", "normalizer", INDEX, {"reduction": "sum", "normalizer": 3.0}),
    "normalizer under none": ("OptionError", "normalizer", INDEX, {"reduction": "none", "normalizer": 3.0}),
    "normalizer with an axis": ("ShapeError", "normalizer", INDEX, {"normalizer": np.ones(1, np.float32)}),
    "normalizer NaN": ("OptionError", "normalizer", INDEX, {"normalizer": float("nan")}),
}

# name -> error, argument, recipe, upstream gradient
GRAD_OUTPUTS: dict[str, tuple[str, str, Recipe, Any]] = {
    "upstream of another shape": ("ShapeError", "grad_output", INDEX.but(reduction="none"), zeros(3, 2)),
    "upstream that would broadcast": ("ShapeError", "grad_output", INDEX.but(reduction="none"), zeros(3)),
    "upstream with positions under mean": ("ShapeError", "grad_output", INDEX, zeros(2, 3)),
    "complex upstream": ("DTypeError", "grad_output", INDEX, zeros(dtype="complex64")),
}


NEEDS = frozenset({"dtype:float32", "target:index", "target:probability"})


def cases() -> Iterator[Case]:
    """Each for the value and, where it is another path, for the gradient."""
    for name, (error, argument, recipe, changes) in CHANGED.items():
        yield from refused(name, FEATURE, partial(_changed, recipe, changes), error, argument, needs=NEEDS)
    for name, (error, argument, recipe, options) in OPTIONS.items():
        yield from refused(name, FEATURE, partial(_optioned, recipe, options), error, argument, needs=NEEDS)
    for name, (error, argument, recipe, grad_output) in GRAD_OUTPUTS.items():
        build = partial(_changed, recipe, {"grad_output": grad_output})
        yield from refused(name, FEATURE, build, error, argument, VALUE_AND_GRADIENT[1:], needs=NEEDS)
    questions: Questions = (("target gradient", "target-gradient"),)
    yield from refused("gradient of class indices", FEATURE, INDEX.call, "OptionError", "wrt", questions, needs=NEEDS)


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Call:
    return replace(recipe.call(), **changes)


def _optioned(recipe: Recipe, options: dict[str, Any]) -> Call:
    call = recipe.call()
    return replace(call, options={**call.options, **options})
