"""The catalogue: every case, by family."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

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


# How many cases of a feature are core: enough to compile each option's value and gradient once or twice.
CORE = 6

# Of these, the first gradient of a feature, which comes with the value, is one of the few if it has no more elements,
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
    seen: set[str] = set()
    for id in _core_ids(found):
        case = found[id]
        about = f"{case.feature}, bad" if case.raises and case.asks == "loss" else case.feature
        few = case.few or (about not in seen and (about != case.feature or _small(case)))
        seen.update([about] if few else [])
        found[id] = replace(case, core=True, few=few)
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
