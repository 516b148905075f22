"""The shape and the options of a hostile call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from random import Random
from typing import Any

import numpy as np

from unixent import LossOptions
from unixent_conformance.oracle.solution import ROW_OPTIONS

HAS_NUM_CLASSES = "num_classes" in ROW_OPTIONS and "num_classes" in {each.name for each in fields(LossOptions)}


def weighted(r: Random, table: Mapping[Any, float]) -> Any:
    return r.choices(list(table), list(table.values()))[0]


def draw_positions(r: Random) -> tuple[int, ...]:
    case = weighted(r, {"scalar": 8, "vector": 38, "empty": 5, "matrix": 25, "axes": 16, "long": 8})
    if case == "scalar":
        return ()
    if case == "empty":
        return r.choice(((0,), (0, 3), (2, 0), (3, 0, 2)))
    if case == "vector":
        return (r.randint(1, 6),)
    if case == "long":
        return r.choice(((r.randint(20, 130),), (r.randint(5, 9), r.randint(5, 12))))
    return tuple(r.randint(1, 4) for _ in range(2 if case == "matrix" else r.randint(3, 6)))


def draw_classes(r: Random, positions: tuple[int, ...]) -> int:
    count = int(np.prod(positions))
    case = weighted(r, {1: 6, 2: 8, 9: 62, 70: 14, 400: 6, 6000: 4})
    if case > 70 and count > 4:
        case = 9
    if case > 9 and count > 40:
        case = 9
    return int(case if case <= 2 else r.randint(3, case))


def draw_ignore_index(r: Random, classes: int) -> int:
    where = weighted(r, {"default": 55, "inside": 22, "outside": 23})
    if where == "default":
        return -100
    if where == "inside":
        return r.randrange(classes)
    return int(r.choice((-1, classes, classes + 3, 255, 2**31, 2**40, -(2**63), 2**64 - 1)))


def draw_options(r: Random, positions: tuple[int, ...], classes: int, has_indices: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "label_smoothing": weighted(r, {0.0: 62, 0.1: 20, 0.5: 6, 1.0: 6, 1e-6: 6}),
        "z_loss": weighted(r, {0.0: 66, 1e-4: 14, 0.1: 10, 1.0: 6, 10.0: 4}),
        "softcap": weighted(r, {None: 66, 30.0: 10, 5.0: 8, 1.0: 6, 0.1: 4, 1e-3: 2, 1e300: 2, 1e-50: 2}),
        "scale": weighted(r, {1.0: 76, 0.5: 6, 0.125: 6, 2.0: 6, 30.0: 3, 1e-3: 3}),
        "temperature": weighted(r, {1.0: 76, 0.7: 10, 3.0: 6, 0.1: 4, 1e-2: 2, 1e3: 2}),
        "reduction": weighted(r, {"mean": 48, "sum": 16, "none": 36}),
        "on_empty": weighted(r, {"zero": 70, "nan": 15, "raise": 15}),
        "dtype": weighted(r, {None: 72, "float16": 6, "bfloat16": 6, "float32": 8, "float64": 8}),
        "validate": weighted(r, {"auto": 70, "full": 10, "off": 20}),
    }
    if has_indices:
        options["ignore_index"] = draw_ignore_index(r, classes)
    if options["reduction"] == "mean" and r.random() < 0.3:
        number = weighted(r, {0.0: 10, 1e-50: 4, 1e-30: 4, 0.5: 12, 7.0: 40, 1e6: 20, 1e30: 10})
        makes = (float, float, np.float32, lambda n: np.array(n, np.float64), lambda n: np.array(n, np.float32))
        options["normalizer"] = 3 if r.random() < 0.1 else r.choice(makes)(number)
    if HAS_NUM_CLASSES and r.random() < 0.15:
        options["num_classes"] = r.randint(1, classes)
    defaults = {each.name: each.default for each in fields(LossOptions)}
    return {name: value for name, value in options.items() if name not in defaults or value != defaults[name]}
