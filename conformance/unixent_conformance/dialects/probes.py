"""Whether a convention is one. It holds on its smallest input, in every precision, and whatever else is asked of the
loss: an answer that follows it under one option and not under another is a fault that resembles it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unixent_conformance.dialects.model import Dialect, classes_of, ignores, in_float32, is_half
from unixent_conformance.expected import Part, expected
from unixent_conformance.model import Call, Case, Quantity
from unixent_conformance.under_test import Subject

# Topics that a dtype may have a share in.
OF_DTYPES = {"accuracy", "result dtype", "clipping"}

# Topics that no option has a share in but those without which a dialect does not show.
OF_FEW_OPTIONS = {"denominator", "empty mean", "ignore_index", "label smoothing", "target's mass", "z-loss"}

# What a call is asked without, in this order, as long as the dialect still shows.
ARRAYS = ("weight", "mask")
OPTIONS = ("z_loss", "label_smoothing", "softcap", "scale", "temperature", "normalizer", "dtype")


def denied(dialect: Dialect, call: Call, case: Case, subject: Subject) -> bool:
    """Whether an input that tells the dialect from the definition, and should follow it too, is answered as defined."""
    return any(_as_defined(probe, quantity, subject) for probe, quantity in _probes(dialect, call, case))


def same_parts(ours: Sequence[Part], theirs: Sequence[Part]) -> bool:
    return all(
        a.dtype == b.dtype and np.array_equal(a.estimate.value, b.estimate.value, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def _probes(dialect: Dialect, call: Call, case: Case) -> Iterator[tuple[Call, Quantity]]:
    if dialect.probe is not None:
        yield dialect.probe(call), "loss"
    if call.linear:
        return

    def shows(call: Call, quantity: Quantity) -> bool:
        ours = expected(call, quantity)
        return dialect.applies(call, case) and not same_parts(ours, expected(call, quantity, [dialect]))

    if is_half(call) and not {dialect.topic} & OF_DTYPES and shows(in_float32(call), "loss"):
        yield in_float32(call), "loss"
    if dialect.topic in OF_FEW_OPTIONS and not call.tail:
        quantities: tuple[Quantity, ...] = ("loss", "logits gradient")
        quantity = next((q for q in quantities if shows(call, q)), None)
        if quantity is not None:
            plain = _plainest(call, lambda plainer: shows(plainer, quantity))
            others = (plain, *(change(plain) for change in _OTHERS.get(dialect.topic, ())))
            yield from ((probe, quantity) for probe in others if probe is not call and shows(probe, quantity))


def _plainest(call: Call, shows: Callable[[Call], bool]) -> Call:
    """The call without all that the dialect shows without."""
    changes: list[Callable[[Call], Call]] = [_without_array(name) for name in ARRAYS]
    changes += [_without_option(name) for name in OPTIONS]
    for change in changes:
        plainer = change(call)
        if plainer is not call and shows(plainer):
            call = plainer
    return call


def _without_array(name: str) -> Callable[[Call], Call]:
    none: dict[str, Any] = {name: None}
    return lambda call: call if getattr(call, name) is None else replace(call, **none)


def _without_option(name: str) -> Callable[[Call], Call]:
    def without(call: Call) -> Call:
        if name not in call.options:
            return call
        return replace(call, options={key: value for key, value in call.options.items() if key != name})

    return without


def _smoothed(call: Call) -> Call:
    return replace(call, options={**call.options, "label_smoothing": 0.1})


def _ignored_elsewhere(call: Call) -> Call:
    """The same positions ignored by an index that is a class, or by one that is none."""
    if not call.has_indices or not ignores(call):
        return call
    before = call.options.get("ignore_index", -100)
    after = -100 if before >= 0 else classes_of(call) // 2
    target = np.where(call.target == before, after, call.target).astype(np.int64)
    return replace(call, target=target, options={**call.options, "ignore_index": after})


_OTHERS: dict[str, tuple[Callable[[Call], Call], ...]] = {"denominator": (_smoothed, _ignored_elsewhere)}


def _as_defined(call: Call, quantity: Quantity, subject: Subject) -> bool:
    try:
        answer = subject.answer(call, quantity)
    except Exception:  # no bias, say
        return False
    return all(part.compare(got).ok for part, got in zip(expected(call, quantity), answer, strict=True))
