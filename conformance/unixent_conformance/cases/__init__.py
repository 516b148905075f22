"""The catalogue: every case, by family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    extremes,
    huge,
    indices,
    layouts,
    linear,
    options,
    padding,
    properties,
    sparse,
    special,
    statistics,
    tiles,
)
from unixent_conformance.expected import expected
from unixent_conformance.model import Case, Tier
from unixent_conformance.names import did_you_mean, require_known, resembling

__all__ = ["catalogue", "find", "is_known"]


FAMILIES = (
    options,
    indices,
    empty,
    special,
    accuracy,
    layouts,
    properties,
    errors,
    combinations,
    linear,
    derivatives,
    padding,
    extremes,
    statistics,
    sparse,
    tiles,
)

DIFFICULT = {*special.SPOTS, accuracy.CONFIDENT, extremes.CAPPED}

# How many cases of a feature are core: enough to compile each option's value and gradient once.
CORE = 3

# The first gradient of a feature, which comes with the value, is one of the few if it has no more elements,
# and so is the first value for which NaN is due where no error can be raised.
SMALL = 160


@cache
def _by_id() -> dict[str, Case]:
    by_id: dict[str, Case] = {}
    for family in (*FAMILIES, huge):
        for case in family.cases():
            if case.id in by_id:
                raise ValueError(f"two cases are called {case.id}")
            by_id[case.id] = case
    quick = [case for case in by_id.values() if case.within(Tier.QUICK)]
    # What means nothing under a trace are properties, and errors but those about values, where NaN is due instead.
    traceable = [c for c in quick if c.property is None and (c.raises is None or c.raises.about_values)]
    few = list(_few(traceable))
    for tier, ids in ((Tier.SAMPLED, _sampled(quick)), (Tier.FEW, few), (Tier.CORE, [*few, *_core(traceable)])):
        for id in ids:
            by_id[id] = replace(by_id[id], tiers=by_id[id].tiers | {tier})
    return by_id


def _few(traceable: Iterable[Case]) -> Iterator[str]:
    """Those that their family has chosen, and of every feature the first small gradient and the first NaN."""
    seen: set[str] = set()
    for case in traceable:
        nan = case.raises is not None and case.quantity == "loss"
        subject = f"{case.feature}, NaN" if nan else case.feature
        if case.within(Tier.FEW) or (subject not in seen and (nan or _small(case))):
            yield case.id
            seen.add(subject)


def _small(case: Case) -> bool:
    """Few numbers to differentiate with respect to. A gradient by forward mode is a sum over the losses, so none of
    them may be NaN, and each term comes in the dtype of the result, so that must be the accumulation's."""
    call = case.build()
    arrays = call.arrays()
    elements = sum(arrays[name].size for name in (call.differentiable() if call.linear else ("logits",)))
    wide = call.dtype in ("float32", "float64") and "dtype" not in call.options
    if "gradient" not in case.quantity or elements > SMALL or not wide:
        return False
    return bool(np.isfinite(expected(call, "loss")[0].estimate.value).all())


def _core(traceable: Iterable[Case]) -> Iterator[str]:
    """Cases of a feature at an odd stride, so that values and gradients alternate, and its first gradient of target."""
    features: dict[str, list[Case]] = {}
    for case in traceable:
        features.setdefault(case.feature, []).append(case)
    for feature, cases in features.items():
        most = 4 * CORE if feature == combinations.FEATURE else CORE
        yield from [case.id for case in cases[:: len(cases) // most | 1][:most]]
        yield from [case.id for case in cases if case.quantity == "target gradient"][:1]


def _sampled(quick: Iterable[Case]) -> Iterator[str]:
    """Of each input one question, drawn by its name, since every answer comes with a value. What is difficult in itself
    is asked everything: such cases share shapes and options, and so compilations."""
    for stem, group in groupby(quick, lambda case: case.id.rpartition("/")[0]):
        cases = list(group)
        several = len({case.quantity for case in cases}) == len(cases)
        one = several and cases[0].feature not in DIFFICULT
        yield from [cases[crc32(stem.encode()) % len(cases)].id] if one else [case.id for case in cases]


def catalogue(tier: Tier = Tier.FULL, *, features: Iterable[str] = ()) -> list[Case]:
    """The cases of a tier in a fixed order, of some features or of all but the huge ones.

    >>> from unixent_conformance.cases import catalogue
    >>> {case.feature for case in catalogue(features=("mask",))}
    {'mask'}
    """
    wanted, cases = set(features), list(_by_id().values())
    if huge.FEATURE not in wanted:
        cases = [case for case in cases if case.feature != huge.FEATURE]
    require_known("features", sorted(wanted), (case.feature for case in cases), "unixent conformance list features")
    return [case for case in cases if case.within(tier) and (not wanted or case.feature in wanted)]


def is_known(id: str) -> bool:
    """Whether a case has this id."""
    return id in _by_id()


def find(id: str) -> Case:
    """The case of an id.

    >>> find("mask/bool/float32-mean/value").feature
    'mask'
    """
    try:
        return _by_id()[id]
    except KeyError:
        family = id.partition("/")[0]
        near = resembling(id, (each for each in _by_id() if each.partition("/")[0] == family), 1)
        raise LookupError(f"no case is called {id!r}{did_you_mean(near)}") from None
