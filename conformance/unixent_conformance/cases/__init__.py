"""The catalogue: every case, by family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from zlib import crc32

import numpy as np

from unixent_conformance.cases import (
    accuracy,
    combinations,
    derivatives,
    empty,
    errors,
    indices,
    layouts,
    linear,
    options,
    properties,
    special,
)
from unixent_conformance.cases.model import ABOUT_VALUES, Call, Case, Finding, Raises

__all__ = ["Call", "Case", "Finding", "Raises", "catalogue", "find"]


FAMILIES = (options, indices, empty, special, accuracy, layouts, properties, errors, combinations, linear, derivatives)

DIFFICULT = {*special.SPOTS, accuracy.CONFIDENT}

# How many cases of a feature are core: enough to compile each option's value and gradient once.
CORE = 3

# The first gradient of a feature, which comes with the value, is one of the few if it has no more elements,
# and so is the first value for which NaN is due where no error can be raised.
SMALL = 160


@cache
def _by_id() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for family in FAMILIES:
        for case in family.cases():
            if case.id in found:
                raise ValueError(f"two cases are called {case.id}")
            found[case.id] = case
    for id in _lean_ids(found):
        found[id] = replace(found[id], lean=True)
    traceable = _traceable(found.values())
    seen: set[str] = set()
    for case in traceable:
        about = f"{case.feature}, bad" if case.raises and case.asks == "loss" else case.feature
        if case.few or (about not in seen and (about != case.feature or _small(case))):
            found[case.id] = replace(found[case.id], core=True, few=True)
            seen.add(about)
    for id in _core_ids(traceable):
        found[id] = replace(found[id], core=True)
    return found


def _small(case: Case) -> bool:
    """Few numbers to differentiate with respect to. A gradient by forward mode is a sum over the losses, so none of
    them may be NaN, and each term comes in the dtype of the result, so that must be the accumulation's."""
    from unixent_conformance import expect

    call = case.build()
    arrays = call.arrays()
    elements = sum(arrays[name].size for name in (call.differentiable() if call.linear else ("logits",)))
    if (
        "gradient" not in case.asks
        or elements > SMALL
        or call.dtype not in ("float32", "float64")
        or "dtype" in call.options
    ):
        return False
    return bool(np.isfinite(expect.expected(call, "loss")[0].estimate.value).all())


def _traceable(cases: Iterable[Case]) -> list[Case]:
    """Quick cases, less errors and properties, which mean nothing under a trace; errors about values do, since NaN is
    due there."""
    return [
        case
        for case in cases
        if case.quick and case.holds is None and (case.raises is None or case.raises.error in ABOUT_VALUES)
    ]


def _core_ids(traceable: Sequence[Case]) -> list[str]:
    """Cases of a feature at an odd stride, so that values and gradients alternate, and its first gradient of target."""
    features: dict[str, list[str]] = {}
    learnt = {case.feature: case.id for case in reversed(traceable) if case.asks == "target gradient"}
    for case in traceable:
        features.setdefault(case.feature, []).append(case.id)
    most = {feature: 4 * CORE if feature == combinations.FEATURE else CORE for feature in features}
    spread = [id for name, ids in features.items() for id in ids[:: len(ids) // most[name] | 1][: most[name]]]
    return [*spread, *learnt.values()]


def _lean_ids(found: dict[str, Case]) -> list[str]:
    """Of each quick input one question, drawn by its name, since every answer comes with a value. What is difficult in
    itself is asked everything: such cases share shapes and options, and so compilations."""
    ids = []
    for stem, cases in groupby(
        (case for case in found.values() if case.quick), lambda case: case.id.rpartition("/")[0]
    ):
        alike = list(cases)
        several = len({case.asks for case in alike}) == len(alike)
        one = several and alike[0].feature not in DIFFICULT
        ids += [alike[crc32(stem.encode()) % len(alike)].id] if one else [case.id for case in alike]
    return ids


def catalogue(*, quick: bool = False, features: tuple[str, ...] = ()) -> list[Case]:
    """The cases in a fixed order; `quick` keeps the few that make a run of seconds, `features` those of some features.

    >>> from unixent_conformance.cases import catalogue
    >>> {case.feature for case in catalogue(features=("mask",))}
    {'mask'}
    """
    unknown = set(features) - {case.feature for case in _by_id().values()}
    if unknown:
        raise ValueError(f"features: no such feature: {', '.join(sorted(unknown))}")
    return [
        case for case in _by_id().values() if (case.quick or not quick) and (not features or case.feature in features)
    ]


def find(id: str) -> Case:
    """The case of an id.

    >>> find("mask/bool/float32-mean/value").feature
    'mask'
    """
    try:
        return _by_id()[id]
    except KeyError:
        raise LookupError(f"no case is called {id!r}") from None
