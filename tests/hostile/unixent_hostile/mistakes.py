"""Wrong arguments: each is refused by an error of ours that names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np

from unixent_conformance.model import Call


@dataclass(frozen=True)
class Mistake:
    """What stands in the place of an argument, and the name that the error must have."""

    argument: str
    value: Any
    what: str


class ForeignArray:
    """What looks like the array of a framework that is not there."""

    dtype, shape = "float32", (2, 3)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an array of another framework was converted")


ForeignArray.__module__ = "cupy"


def _grown(a: Any) -> Any:
    return np.zeros((*a.shape, 2), a.dtype)


def _longer(a: Any) -> Any:
    return np.zeros((*a.shape[:-1], a.shape[-1] + 1), a.dtype) if a.ndim else np.zeros(2, a.dtype)


def _structured(a: Any) -> Any:
    return np.zeros(a.shape, [("x", "f4"), ("y", "i4")])


# name -> from the right array to the wrong one
ARRAYS: dict[str, Callable[[Any], Any]] = {
    "complex": lambda a: a.astype(np.complex64),
    "object": lambda a: a.astype(object),
    "strings": lambda a: a.astype(np.float64).astype("U8"),
    "bytes": lambda a: np.zeros(a.shape, "S3"),
    "dates": lambda a: np.zeros(a.shape, "datetime64[s]"),
    "durations": lambda a: np.zeros(a.shape, "timedelta64[s]"),
    "structured": _structured,
    "masked": lambda a: np.ma.MaskedArray(np.asarray(a), mask=np.zeros(a.shape, bool)),
    "string": lambda a: "three",
    "dictionary": lambda a: {"a": 1},
    "set": lambda a: {1, 2},
    "function": lambda a: len,
    "foreign": lambda a: ForeignArray(),
    "ragged": lambda a: [[1.0, 2.0], [1.0]],
    "huge integers": lambda a: [10**30],
    "nothing in a list": lambda a: [None],
    "one axis more": _grown,
    "longer": _longer,
}
ABOVE, NAN, INF = 10**400, math.nan, math.inf
OPTIONS: dict[str, tuple[Any, ...]] = {
    "label_smoothing": (-0.1, 1.5, NAN, "0.1", True, [0.1], 1j, ABOVE, None, np.array([0.1]), np.timedelta64(1)),
    "z_loss": (-1.0, NAN, INF, "1", True, ABOVE, (0.1,), None, b"1", np.datetime64("2020")),
    "scale": (0.0, -1.0, NAN, INF, "2", True, ABOVE, None, [2.0], np.timedelta64(3), 1e-300 / 1e10),
    "temperature": (0.0, -0.7, NAN, INF, "1", True, ABOVE, None, (0.7,), np.datetime64("2020")),
    "softcap": (0.0, -1.0, NAN, INF, "30", True, ABOVE, [30.0], np.timedelta64(3), Fraction(-1, 3)),
    "reduction": ("avg", None, 1, "MEAN", b"mean", ["mean"], "batchmean", np.array("mean")),
    "on_empty": ("ignore", None, 0, "ZERO", ["zero"]),
    "validate": ("never", None, True, "Auto"),
    "dtype": ("int32", "float8", "complex64", int, object, 32, "float", [], "f4,f4", np.dtype("U3"), "torch.foo"),
    "ignore_index": (1.5, "0", None, True, [0], NAN, np.float32(1), ABOVE),
    "axis": (7, -8, 1.0, "1", None, True, (0,), 2**70),
    "normalizer": (-1.0, NAN, INF, "3", True, ABOVE, -ABOVE, [3.0], np.array(-1.0), np.array(NAN), np.ones(2), 1j),
    "chunk": (0, -1, 1.5, "2", True, NAN, [1]),
    "wrt": ("weight", (), None, 3, ("logits", "loss"), [], "classifiers", {"logits"}),
    "backend": ("nope", 3, "", b"numpy"),
    "parallel": (3, "dp", object()),
    "num_classes": (0, -1, 1.5, "3", True, 10**9, [1], 2**70),
}


def draw_mistake(r: Random, form: str, call: Call) -> Mistake | None:
    """One argument of a call, given wrongly; None where what was drawn would be right."""
    linear = call.linear
    names = ["hidden", "classifier", "bias"] if linear else ["logits"]
    names += ["target", "target", "weight", "mask"]
    if form.endswith("value_and_grad"):
        names += ["grad_output"]
    if r.random() < 0.5 and not form.endswith("autograd"):
        return _array_mistake(r, r.choice(names), call)
    options = ["label_smoothing", "z_loss", "scale", "softcap", "temperature", "dtype", "validate", "ignore_index"]
    options += ["axis"] if not linear else ["chunk"] if not form.endswith("autograd") else []
    options += [] if "terms" in form else ["reduction", "on_empty", "normalizer"]
    options += ["wrt", "wrt"] if form.endswith("value_and_grad") else []
    options += ["backend", "parallel"] if "module" not in form and "autograd" not in form else []
    name = r.choice(options)
    value = r.choice(OPTIONS[name])
    if name == "wrt" and value is None and linear:
        return None
    if name == "axis" and value is None and form == "native_module":
        return None  # torch's module takes it
    return Mistake(name, value, f"{value!r:.40}")


def _array_mistake(r: Random, name: str, call: Call) -> Mistake | None:
    array = getattr(call, name)
    what = r.choice(list(ARRAYS))
    if array is None:
        if name == "grad_output" or (name == "mask" and not call.has_indices):
            return None
        scores = call.classifier if call.linear else call.logits
        classes = scores.shape[0 if call.linear else call.options.get("axis", -1)]
        array = np.ones(call.target.shape if name == "mask" else classes, np.float32)
    array = np.asarray(array)
    if what == "longer" and name == "mask" and 0 in array.shape:
        return None  # of size 1 where there are no positions
    if what in ("longer", "one axis more") and name in ("logits", "hidden", "classifier"):
        return None  # with other classes or another width it may be another call that is right
    if what in ("ragged", "huge integers", "nothing in a list") and name in ("logits", "hidden"):
        return None  # NumPy's, and named by what stands beside it
    wide = array.astype(np.float64) if array.dtype.name == "bfloat16" else array
    with np.errstate(all="ignore"):
        return Mistake(name, ARRAYS[what](wide), what)
