"""The catalogue: every case, by family."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from unixent_conformance.cases import (
    accuracy,
    combinations,
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


FAMILIES = (options, indices, empty, special, accuracy, layouts, properties, errors, combinations, linear)


# How many cases of a feature are core: enough to compile each option's value and gradient once or twice.
CORE = 6


@cache
def _by_id() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for family in FAMILIES:
        for case in family.cases():
            if case.id in found:
                raise ValueError(f"two cases are called {case.id}")
            found[case.id] = case
    for id in _core_ids(found):
        found[id] = replace(found[id], core=True)
    return found


def _core_ids(found: dict[str, Case]) -> list[str]:
    """Quick cases of a feature at an odd stride, so that values and gradients alternate; errors and properties, which
    mean nothing under a trace, are none of them, but errors about values are, since NaN is due there."""
    features: dict[str, list[str]] = {}
    for case in found.values():
        if case.quick and case.holds is None and (case.raises is None or case.raises.error in ABOUT_VALUES):
            features.setdefault(case.feature, []).append(case.id)
    most = {feature: 4 * CORE if feature == combinations.FEATURE else CORE for feature in features}
    return [id for name, ids in features.items() for id in ids[:: len(ids) // most[name] | 1][: most[name]]]


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
