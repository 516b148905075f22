"""The fused linear form at its edges: special values through hidden and bias, empty means, bad input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import VALUE_AND_GRADIENTS, each, refused
from unixent_conformance.cases.inputs import DTYPES, dtype_of
from unixent_conformance.model import Call, Case

SPECIAL = "fused linear special values"
BAD = "fused linear bad input"

INF, NAN = float("inf"), float("nan")
HIDDEN = [[0.5, -1.0], [1.0, 2.0], [-0.5, 0.25], [2.0, 1.0], [0.0, -1.5]]
CLASSIFIER = [[1.0, 0.5], [-0.5, 1.0], [0.25, -2.0]]
BIAS = [0.5, -1.0, 2.0]
TARGET = [2, 0, 1, 0, 2]
PROBABILITIES = [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.25, 0.0, 0.5], [0.5, 0.0, 0.5]]


def plain(dtype: str, **given: Any) -> Call:
    """Five positions, two features, three classes, in chunks of two; anything floating may be given as a list."""
    floating = dtype_of(dtype)
    named = {"hidden": HIDDEN, "classifier": CLASSIFIER, "bias": BIAS, "target": TARGET, **given}
    arrays: dict[str, Any] = {}
    for name in ("hidden", "classifier", "bias", "target", "weight", "mask"):
        array = np.asarray(named[name]) if named.get(name) is not None else None
        arrays[name] = array.astype(floating) if array is not None and array.dtype.kind == "f" else array
    return Call(None, **arrays, options={"chunk": 2, **named.get("options", {})})


def row(index: int, *values: float) -> list[list[float]]:
    """The hidden states with one row replaced."""
    return [list(values) if i == index else own for i, own in enumerate(HIDDEN)]


MASK = [1.0, 0.0, 0.5, 1.0, 0.0]
IGNORED = [2, -100, 1, 0, -100]
INSIDE = [2, 1, 0, 0, 1]

# What arrives, and through what.
SPOTS: dict[str, dict[str, Any]] = {
    "bias -inf beside the target": {"bias": [0.5, -INF, 2.0], "target": [2, 0, 2, 0, 2]},
    "bias -inf at a target": {"bias": [0.5, -INF, 2.0]},
    "bias -inf at a target of weight 0": {"bias": [0.5, -INF, 2.0], "weight": [1.0, 0.0, 2.0]},
    "bias -inf but for the target": {"bias": [-INF, 0.5, -INF], "target": [1, 1, 1, 1, 1]},
    "bias -inf at probability 0": {"bias": [0.5, -INF, 2.0], "target": [[0.5, 0.0, 0.5]] * 5},
    "bias -inf, smoothed": {"bias": [0.5, -INF, 2.0], "target": [2, 0, 2, 0, 2], "options": {"label_smoothing": 0.1}},
    "bias -inf, smoothed at weight 0": {
        "bias": [0.5, -INF, 2.0],
        "target": [2, 0, 2, 0, 2],
        "weight": [1.0, 0.0, 2.0],
        "options": {"label_smoothing": 0.1},
    },
    "bias -inf, z-loss": {"bias": [0.5, -INF, 2.0], "target": [2, 0, 2, 0, 2], "options": {"z_loss": 0.1}},
    "bias -inf, capped": {"bias": [0.5, -INF, 2.0], "options": {"softcap": 5.0}},
    "bias -inf everywhere": {"bias": [-INF] * 3},
    "bias +inf": {"bias": [INF, 0.0, 0.0]},
    "bias NaN": {"bias": [0.5, NAN, 2.0]},
    "bias NaN, masked rows": {"bias": [0.5, NAN, 2.0], "mask": MASK},
    "bias +inf, ignored rows": {"bias": [0.5, INF, 2.0], "target": IGNORED},
    "hidden NaN": {"hidden": row(1, NAN, 2.0)},
    "hidden NaN, probabilities": {"hidden": row(1, NAN, 2.0), "target": PROBABILITIES},
    "hidden +inf": {"hidden": row(1, INF, 2.0)},
    "hidden NaN, masked": {"hidden": row(1, NAN, NAN), "mask": MASK},
    "hidden NaN, bool mask": {"hidden": row(4, NAN, NAN), "mask": [True, True, False, True, False]},
    "hidden NaN, ignored": {"hidden": row(4, NAN, NAN), "target": IGNORED},
    "hidden NaN, ignored inside the classes": {
        "hidden": row(1, NAN, 1.0),
        "target": INSIDE,
        "options": {"ignore_index": 1},
    },
    "hidden infinite, masked": {"hidden": row(1, INF, -INF), "mask": MASK},
    "hidden infinite, masked, probabilities": {"hidden": row(4, -INF, INF), "mask": MASK, "target": PROBABILITIES},
    "hidden infinite, ignored, everything": {
        "hidden": row(1, -INF, INF),
        "target": IGNORED,
        "weight": [1.0, 0.5, 2.0],
        "options": {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0},
    },
    "hidden NaN, last and masked": {"hidden": row(4, NAN, NAN), "mask": MASK},
    "classifier NaN, masked rows": {"classifier": [[1.0, 0.5], [NAN, 1.0], [0.25, -2.0]], "mask": MASK},
    "target out of range, unread": {"target": [2, 0, 3, 0, 2], "options": {"validate": "off"}},
    "negative target, unread": {"target": [2, -1, 1, 0, 2], "options": {"validate": "off"}},
    "nothing counts": {"mask": [0.0] * 5},
    "nothing counts, NaN": {"mask": [0.0] * 5, "options": {"on_empty": "nan"}},
    "everything ignored": {"target": [-100] * 5, "hidden": [[NAN, INF]] * 5},
    "weights all 0": {"weight": [0.0] * 3},
    "confident by bias": {"bias": [60.0, 0.0, 0.0], "target": [0] * 5},
    "hopeless by bias": {"bias": [60.0, 0.0, 0.0], "target": [1] * 5},
    "saturated cap": {"bias": [80.0, -80.0, 0.0], "options": {"softcap": 4.0}},
    # 80,000 is beyond float16, and its accumulation in float32 is exact.
    "logits beyond half": {
        "hidden": [[200.0, 200.0]] * 5,
        "classifier": [[200.0, 200.0], [200.0, 199.0], [-200.0, 1.0]],
        "bias": [0.0] * 3,
        "options": {"dtype": "float32"},
    },
}


def cases() -> Iterator[Case]:
    """Value and gradients; what does not count under every reduction, the rest position by position and as a mean."""
    for name, given in SPOTS.items():
        for dtype in DTYPES:
            for reduction in ("none", "mean", "sum") if "ed" in name else ("none", "mean"):
                options = {**given.get("options", {}), **({} if reduction == "mean" else {"reduction": reduction})}
                build = partial(plain, dtype, **{**given, "options": options})
                if name == "nothing counts, NaN" and reduction != "mean":
                    continue
                stem, quick = f"{SPECIAL}/{name}/{dtype}-{reduction}", dtype == "float32" and reduction == "mean"
                yield from each(stem, SPECIAL, build, VALUE_AND_GRADIENTS, quick=quick)
    yield from _errors()


# name -> error, the argument that its text names, what is changed in the call
WRONG: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classifier of another width": ("ShapeError", "classifier", {"classifier": np.zeros((3, 4), np.float32)}),
    "classifier transposed": ("ShapeError", "classifier", {"classifier": np.zeros((2, 3), np.float32)}),
    "classifier without classes": (
        "ShapeError",
        "classifier",
        {"classifier": np.zeros((0, 2), np.float32), "bias": None},
    ),
    "flat classifier": ("ShapeError", "classifier", {"classifier": np.zeros(2, np.float32)}),
    "integer classifier": ("DTypeError", "classifier", {"classifier": np.zeros((3, 2), np.int64)}),
    "integer hidden": ("DTypeError", "hidden", {"hidden": np.zeros((5, 2), np.int64)}),
    "0-d hidden": ("ShapeError", "hidden", {"hidden": np.zeros((), np.float32)}),
    "bias of fewer classes": ("ShapeError", "bias", {"bias": np.zeros(2, np.float32)}),
    "0-d bias": ("ShapeError", "bias", {"bias": np.zeros((), np.float32)}),
    "integer bias": ("DTypeError", "bias", {"bias": np.zeros(3, np.int64)}),
    "target of another shape": ("ShapeError", "target", {"target": np.zeros(4, np.int64)}),
    "probabilities of the shape of hidden": ("ShapeError", "target", {"target": np.zeros((5, 2), np.float32)}),
    "bool target": ("DTypeError", "target", {"target": np.zeros(5, bool)}),
    "weight of the width": ("ShapeError", "weight", {"weight": np.zeros(2, np.float32)}),
    "mask of another shape": ("ShapeError", "mask", {"mask": np.zeros((5, 1), np.float32)}),
    "target out of range": ("TargetRangeError", "target", {"target": np.array([2, 0, 3, 0, 2])}),
    "negative target": ("TargetRangeError", "target", {"target": np.array([2, 0, 1, 0, -1])}),
}
OPTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chunk 0": ("OptionError", "chunk", {"chunk": 0}),
    "negative chunk": ("OptionError", "chunk", {"chunk": -4}),
    "chunk that is no int": ("OptionError", "chunk", {"chunk": 2.0}),
    "chunk True": ("OptionError", "chunk", {"chunk": True}),
    "unknown reduction": ("OptionError", "reduction", {"reduction": "avg"}),
    "smoothing above 1": ("OptionError", "label_smoothing", {"label_smoothing": 1.5}),
    "negative z_loss": ("OptionError", "z_loss", {"z_loss": -0.1}),
    "softcap 0": ("OptionError", "softcap", {"softcap": 0.0}),
    "normalizer under sum": ("OptionError", "normalizer", {"normalizer": 3.0, "reduction": "sum"}),
    "unknown dtype": ("OptionError", "dtype", {"dtype": "float12"}),
}


def _errors() -> Iterator[Case]:
    due = partial(refused, feature=BAD, questions=VALUE_AND_GRADIENTS)
    for name, (error, argument, changes) in WRONG.items():
        yield from due(name, build=partial(_changed, changes), error=error, argument=argument)
    for name, (error, argument, options) in OPTIONS.items():
        yield from due(name, build=partial(plain, "float32", options=options), error=error, argument=argument)
    empty = partial(plain, "float32", mask=[0.0] * 5, options={"on_empty": "raise"})
    yield from due("mean of nothing", build=empty, error="EmptyMeanError", argument="on_empty")
    short = partial(_changed, {"grad_output": np.zeros(4, np.float32), "options": {"reduction": "none"}})
    name, gradients = "upstream of another shape", VALUE_AND_GRADIENTS[1:]
    yield from due(name, build=short, error="ShapeError", argument="grad_output", questions=gradients)


def _changed(changes: dict[str, Any]) -> Call:
    return replace(plain("float32"), **changes)
