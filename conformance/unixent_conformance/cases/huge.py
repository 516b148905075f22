"""More logits than a 32-bit offset counts. Not in the catalogue: a case takes several GiB and is asked for by `--huge`.

Most rows are zeros, which take no memory until they are written to, and have the loss log C. A few hold numbers, at
both ends and around the middle; the oracle is asked about them and one row of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from unixent_conformance.cases.building import make
from unixent_conformance.cases.inputs import DTYPES, dtype_of
from unixent_conformance.expected import Part, expected
from unixent_conformance.model import Array, Call, Case, Finding
from unixent_conformance.under_test import Subject

FEATURE = "huge inputs"

#: The fewest logits before the last rows begin, and how many classes: no power of two divides them far.
OFFSET, CLASSES = 1 << 31, 32_776
LAST = 24


def cases() -> Iterator[Case]:
    for dtype in DTYPES[:3]:
        build = partial(call, dtype, OFFSET, CLASSES)
        needs = frozenset({f"dtype:{dtype}", "target:index"})
        yield make(
            f"huge/beyond 2**31 logits/{dtype}",
            FEATURE,
            build,
            "logits gradient",
            needs=needs,
            property=rows_hold,
            quick=True,
        )


def call(dtype: str, offset: int, classes: int) -> Call:
    """Unreduced losses of logits of which the last rows lie beyond an offset."""
    rng, rows = np.random.default_rng(31), offset // classes + 1 + LAST
    logits = np.zeros((rows, classes), dtype_of(dtype))
    for row in _written(rows):
        logits[row] = (4 * rng.standard_normal(classes)).astype(logits.dtype)
    target = np.arange(rows) * 7919 % classes
    return Call(logits, target, options={"reduction": "none"}, grad_output=np.ones(rows, logits.dtype))


def rows_hold(subject: Subject, call: Call) -> Finding | None:
    """Each row that holds numbers has the loss and the gradient that it has alone; all others have log C."""
    rows = len(call.logits)
    some = [*_written(rows), 2]
    losses, gradient = subject.gradients(call)
    if losses.shape != (rows,) or gradient.shape != call.logits.shape:
        return Finding(f"the loss has shape {losses.shape}, the gradient {gradient.shape}")
    alone = replace(call, logits=call.logits[some], target=call.target[some], grad_output=call.grad_output[some])
    parts, worst = expected(alone, "logits gradient"), 0.0
    for part, got in zip(parts, (losses[some], gradient[some]), strict=True):
        comparison = part.compare(got)
        if not comparison.ok:
            where = f" of row {some[comparison.index[0]]}" if comparison.index else ""
            detail = comparison.reason or f"got {comparison.got!r}, expected {comparison.expected!r}"
            return Finding(f"{part.name}{where}: {detail}", comparison.units)
        worst = max(worst, comparison.units)
    return _zeros(losses, parts[0], some) or Finding("", worst)


def _zeros(losses: Array, part: Part, some: list[int]) -> Finding | None:
    others = np.delete(losses, some[:-1]).astype(np.float64)
    apart = abs(others - float(part.estimate.value[-1])) > float(2 * (part.estimate.bound[-1] + part.rounding()[-1]))
    wrong = np.count_nonzero(apart | np.isnan(others))
    return Finding(f"loss: {wrong} rows of zeros are not log {CLASSES}") if wrong else None


def _written(rows: int) -> list[int]:
    return [0, 1, rows // 2 - 1, rows // 2, *range(rows - LAST, rows)]
