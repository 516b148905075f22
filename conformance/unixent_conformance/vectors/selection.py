"""Which cases of the catalogue become vectors: the quick ones, every dtype of every feature, nothing large."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from unixent_conformance.cases import catalogue
from unixent_conformance.model import Call, Case, Tier
from unixent_conformance.vectors.files import CODES
from unixent_conformance.vectors.reasons import NO_VECTOR

# Bytes of input arrays. A feature that has nothing as small (many classes, many positions) is shown by its smallest.
SMALL = 16 << 10


def selected(features: Sequence[str] = ()) -> list[Case]:
    """The chosen cases in the catalogue's order."""
    known = [case for case in catalogue(features=features) if case.feature not in NO_VECTOR and not case.property]
    chosen: dict[str, None] = {}
    for case in known:
        if case.within(Tier.QUICK) and _fits(case.build()):
            chosen[case.id] = None
    seen = {key for case in known if case.id in chosen for key in _shown(case)}
    for case in known:
        if not seen.issuperset(_shown(case)) and _fits(case.build()):
            chosen[case.id] = None
            seen.update(_shown(case))
    for feature in {case.feature for case in known} - {case.feature for case in known if case.id in chosen}:
        storable = [case for case in known if case.feature == feature and case.quantity == "loss"]
        smallest = min(storable, key=lambda case: _size(case.build()))
        chosen[smallest.id] = None
    return [case for case in known if case.id in chosen]


def _shown(case: Case) -> Iterator[tuple[str, str, str]]:
    """What a feature should be shown in: each dtype of the logits, and each question."""
    yield (case.feature, case.build().dtype, "raises" if case.raises else case.quantity)


def _fits(call: Call) -> bool:
    return _size(call) <= SMALL and _storable(call)


def _size(call: Call) -> int:
    return sum(np.asarray(array).nbytes for array in call.arrays().values())


def _storable(call: Call) -> bool:
    """Whether files can hold it: no complex array, and options that JSON has."""
    arrays = call.all_arrays().values()
    return all(np.asarray(array).dtype.name in CODES for array in arrays) and all(map(_plain, call.static().values()))


def _plain(value: Any) -> bool:
    return value is None or (isinstance(value, (bool, int, str, float)) and not _special(value))


def _special(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
