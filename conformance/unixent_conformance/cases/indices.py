"""Class indices: every integer dtype, an ignore_index wherever it may lie, and indices that are no class."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from unixent_conformance.cases.building import VALUE_AND_GRADIENT, each, make
from unixent_conformance.cases.inputs import dtype_of
from unixent_conformance.model import INTEGERS, Call, Case, Raises

DTYPES, RANGE, IGNORE = "target dtypes", "out-of-range targets", "ignore_index"


def call(target: list[int], dtype: str, classes: int = 5, mask: Any = None, **options: Any) -> Call:
    """Float32 logits with one row per target."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0.0, 2.0, (len(target), classes)).astype(np.float32)
    return Call(logits, np.array(target, dtype=dtype), mask=mask, options=options)


def cases() -> Iterator[Case]:
    yield from _dtypes()
    yield from _unrepresentable()
    yield from _out_of_range()


def _dtypes() -> Iterator[Case]:
    for dtype in INTEGERS:
        signed = dtype.startswith("int")
        largest = int(np.iinfo(dtype).max)
        # name -> targets and ignore_index, None for the default
        variants: dict[str, tuple[list[int], int | None]] = {
            "plain": ([0, 4, 2, 1], None),
            "ignored inside the classes": ([0, 4, 2, 2, 1], 2),
            "ignored at the largest": ([0, largest, 2, largest], largest),
            "ignored above the classes": ([0, 9, 2, 9], 9),
        }
        if signed:
            variants["ignored by default"] = ([0, -100, 2, -100], None)
            variants["ignored at the least"] = ([0, int(np.iinfo(dtype).min), 2, 1], int(np.iinfo(dtype).min))
        for name, (target, ignore) in variants.items():
            for reduction in ("none", "mean"):
                options: dict[str, Any] = {"reduction": reduction}
                if ignore is not None:
                    options["ignore_index"] = ignore
                build = partial(call, target, dtype, **options)
                yield from each(f"{DTYPES}/{dtype}/{name}/{reduction}", DTYPES, build, quick=reduction == "mean")


def _unrepresentable() -> Iterator[Case]:
    """An ignore_index that the target's dtype cannot hold matches nothing; cast, it would match a class."""
    wide: dict[str, Any] = {"reduction": "none"}
    variants = {
        # 156 is -100 modulo 256, and a class here
        "uint8 156 is not -100": partial(call, [156, 0, 199], "uint8", 200, **wide),
        "uint8 255 is not -1": partial(call, [255, 0, 3], "uint8", 256, ignore_index=-1, **wide),
        "int8 -100 beside ignore_index 300": partial(call, [4, 0, 44], "int8", 50, ignore_index=300, **wide),
        "uint16 65436 is not -100": partial(call, [65436, 0, 3], "uint16", 65500, **wide),
        "int32 beside ignore_index 2**32": partial(call, [0, 1, 2], "int32", ignore_index=2**32, **wide),
        "int8 beside ignore_index 2**40 + 2": partial(call, [0, 1, 2], "int8", ignore_index=2**40 + 2, **wide),
    }
    for name, build in variants.items():
        yield from each(f"{IGNORE}/{name}", IGNORE, build, quick=True)


def _out_of_range() -> Iterator[Case]:
    """An error where values can be read; NaN, value and gradient row, where they cannot or are not to be."""
    variants: dict[str, tuple[list[int], str, dict[str, Any], int]] = {
        # name -> targets, dtype, options, the first value that is no class
        "C": ([0, 5, 2], "int64", {}, 5),
        "far above": ([0, 1, 70_000], "int32", {}, 70_000),
        "-1": ([0, -1, 2], "int64", {}, -1),
        "-C": ([-5, 1, 2], "int64", {}, -5),
        "-99": ([0, -99, -100], "int64", {}, -99),
        "-100 when another index is ignored": ([0, -100, 2], "int64", {"ignore_index": 2}, -100),
        "wraps to a class in 32 bits": ([0, 2**32 + 1, 2], "int64", {}, 2**32 + 1),
        "wraps to -100 in 32 bits": ([0, 2**32 - 100, 2], "int64", {}, 2**32 - 100),
        "uint8 255": ([0, 255, 2], "uint8", {"ignore_index": -1}, 255),
        "uint8 156": ([0, 156, 2], "uint8", {}, 156),
        "uint64 at its largest": ([0, 2**64 - 1, 2], "uint64", {"ignore_index": -1}, 2**64 - 1),
        "uint64 -100 modulo 2**64": ([0, 2**64 - 100, 2], "uint64", {}, 2**64 - 100),
        "int8 -100 beside ignore_index 156": ([0, -100, 2], "int8", {"ignore_index": 156}, -100),
        "the least int64": ([0, -(2**63), 2], "int64", {}, -(2**63)),
    }
    for name, (target, dtype, options, first) in variants.items():
        due, stem, quick = (
            Raises("TargetRangeError", "target", (str(first), "5")),
            f"{RANGE}/{name}",
            name in ("C", "-1"),
        )
        made = partial(call, target, dtype, **options)
        for quantity, word in VALUE_AND_GRADIENT:
            build = partial(made, reduction="none")
            yield make(f"{stem}/{word}", RANGE, build, quantity, raises=due, quick=quick)
            full = partial(made, reduction="sum", validate="full")
            yield make(f"{stem}/full/{word}", RANGE, full, quantity, raises=due)
            for reduction in ("none", "sum"):
                off = partial(made, reduction=reduction, validate="off")
                yield make(f"{stem}/off-{reduction}/{word}", RANGE, off, quantity, quick=quick)
        yield make(f"{stem}/off-mean/value", RANGE, partial(made, validate="off"))
        weighted = partial(made, validate="off", weight=np.array([0.5, 2, 1, 3, 0.25], np.float32))
        yield make(f"{stem}/off-weighted/terms", RANGE, weighted, "terms", quick=quick)
        smoothed = partial(made, validate="off", reduction="none", label_smoothing=0.1, z_loss=0.1)
        yield from each(f"{stem}/off-smoothed", RANGE, smoothed)
    mask = np.array([1.0, 0.0, 1.0], dtype=np.float32)
    masked = partial(call, [0, 7, 2], "int64", mask=mask, reduction="none")
    for question in VALUE_AND_GRADIENT:
        due = Raises("TargetRangeError", "target", ("7", "5"))
        yield from each(f"{RANGE}/masked", RANGE, masked, (question,), raises=due)
        yield from each(f"{RANGE}/masked/off", RANGE, partial(masked, validate="off"), (question,))
    build = partial(_grid, [[0, 1, 2], [3, 9, 8]])
    due = Raises("TargetRangeError", "target", ("(1, 1)", "9", "5"))
    yield make(f"{RANGE}/names the first position", RANGE, build, raises=due, quick=True)


def _grid(target: list[list[int]]) -> Call:
    logits = np.random.default_rng(5).normal(0.0, 1.0, (2, 3, 5)).astype(dtype_of("float32"))
    return Call(logits, np.array(target))
