"""A failing input made as small as it can be, while what comes is wrong in the same way.

Positions, classes and options are left out and numbers rounded, one step after another; each smaller call is judged
anew, by the same oracle.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np

from unixent_conformance.dialects import explain
from unixent_conformance.model import Array, Call, Case
from unixent_conformance.results import Result, Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.under_test import Subject

# Of processor time, for each fault.
SECONDS = 6.0


def size(call: Call) -> tuple[int, int, int]:
    """What a reader has to look at: numbers, options, and digits of the numbers."""
    arrays = [np.asarray(array) for array in call.all_arrays().values()]
    digits = sum(len(f"{float(x):.9g}") for a in arrays for x in a.flat) if sum(a.size for a in arrays) < 100 else 10**6
    return sum(array.size for array in arrays), len(call.options), digits


def shrunk(case: Case, result: Result, subject: Subject, seconds: float = SECONDS) -> tuple[Call, Result]:
    """The smallest call that fails as `result` does, and its result, with the lines that reproduce it; the case's own
    where nothing smaller does, or what is asked is more than one answer."""
    call, end = case.build(), process_time() + seconds
    if case.property is not None or case.raises is not None or case.stored is not None:
        return call, result
    smaller = True
    while smaller and process_time() < end:
        smaller = False
        for candidate in simpler(call):
            if process_time() > end:
                break
            if size(candidate) >= size(call):
                continue
            judged = _judged(case, candidate, subject)
            if judged is not None and judged.verdict is result.verdict and manner(judged) == manner(result):
                call, result, smaller = candidate, judged, True
                break
    return call, result


def manner(result: Result) -> tuple[str, ...]:
    """In which way an answer is wrong: of which array, and whether it is finite where it should be."""
    numbers = re.match(r"(.*?)(?: at \(.*?\))?: got (\S+), expected (\S+)", result.detail)
    if numbers is None:
        return (re.sub(r"[\d().,-]+", "", result.detail),)
    return numbers[1], *(n if n in ("nan", "inf", "-inf") else "finite" for n in numbers.groups()[1:])


def _judged(case: Case, call: Call, subject: Subject) -> Result | None:
    """The verdict on a call in the place of a case's own; None where the oracle does not take it."""
    other = replace(case, build=lambda: call)
    try:
        result = run_case(other, subject)
        return explain(result, other, subject) if result.verdict is Verdict.WRONG else result
    except Exception:
        return None


def simpler(call: Call) -> Iterator[Call]:
    """Calls with less in them, those that leave out most first."""
    yield from _fewer_positions(call)
    yield from _fewer_classes(call)
    yield from _fewer_options(call)
    yield from _rounder(call)


def _halves(length: int) -> Iterator[Array]:
    """Indices that stay: one, a half, or all but one."""
    everything = np.arange(length)
    if length > 4:
        yield everything[: length // 2]
        yield everything[length // 2 :]
    if 1 < length <= 64:
        yield from (np.delete(everything, i) for i in everything[::-1])


def _fewer_positions(call: Call) -> Iterator[Call]:
    scores = call.hidden if call.linear else call.logits
    class_axis = scores.ndim - 1 if call.linear else call.options.get("axis", -1) % scores.ndim
    shape = [n for axis, n in enumerate(scores.shape) if axis != class_axis]
    if call.tail or call.statistic:
        return

    for axis, length in enumerate(shape):
        own = axis if axis < class_axis else axis + 1  # among the axes of the logits

        def taken(array: Any, keep: Array, axis: int = axis, own: int = own, length: int = length) -> Any:
            """Of logits, or of an array with the shape of the positions or 1 in it."""
            if array is None:
                return None
            place = own if array.ndim == len(shape) + 1 else axis
            whole = array.ndim >= len(shape) and array.shape[place] == length
            return np.take(array, keep, axis=place) if whole else array

        for keep in _halves(length):
            moved = {"hidden": taken(call.hidden, keep)} if call.linear else {"logits": taken(call.logits, keep)}
            others = {name: taken(getattr(call, name), keep) for name in ("target", "mask", "grad_output")}
            yield replace(call, **moved, **others)


def _fewer_classes(call: Call) -> Iterator[Call]:
    ignored = call.options.get("ignore_index", -100)
    if call.tail or call.statistic or "num_classes" in call.options or ignored >= 0:
        return
    axis = 0 if call.linear else call.options.get("axis", -1)
    scores = call.classifier if call.linear else call.logits
    classes = scores.shape[axis]
    for keep in _halves(classes):
        if len(keep) < 2:
            continue
        target = np.asarray(call.target)
        if call.has_indices:
            known = target != ignored
            if not np.isin(target[known], keep).all():
                continue
            target = np.where(known, np.searchsorted(keep, np.where(known, target, keep[0])), target)
            target = np.asarray(target).astype(call.target.dtype)
        else:
            target = np.take(target, keep, axis=-1 if call.linear else axis)
        moved: dict[str, Any] = {"target": target}
        moved["classifier" if call.linear else "logits"] = np.take(scores, keep, axis=axis)
        others = {name: getattr(call, name)[keep] for name in ("weight", "bias") if getattr(call, name) is not None}
        yield replace(call, **moved, **others)


def _fewer_options(call: Call) -> Iterator[Call]:
    for name in call.options:
        if name != "axis":
            yield replace(call, options={key: value for key, value in call.options.items() if key != name})
    for name in ("mask", "weight", "bias", "grad_output"):
        if getattr(call, name) is not None:
            nothing: dict[str, Any] = {name: None}
            yield replace(call, **nothing)
    if call.grad_output is None and call.options.get("reduction") == "none":
        yield replace(call, options={**call.options, "reduction": "sum"})


def _rounder(call: Call) -> Iterator[Call]:
    for name in ("logits", "hidden", "classifier", "bias", "target", "weight", "mask", "grad_output"):
        array = getattr(call, name)
        if array is None or np.asarray(array).dtype.kind in "iub":
            continue
        wide = np.asarray(array, np.float64)
        for step in (1.0, 0.5, 0.25):
            with np.errstate(over="ignore", invalid="ignore"):
                rounded = np.where(np.isfinite(wide) & (np.abs(wide) < 1000), np.round(wide / step) * step, wide)
            new: dict[str, Any] = {name: rounded.astype(array.dtype)}
            if name != "target" or (new[name] != 0).any(axis=-1).all():  # a distribution keeps some mass
                yield replace(call, **new)
