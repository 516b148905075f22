"""Which cases are run in which modes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from unixent_conformance.harness import Mode
from unixent_conformance.model import Case, Tier


def select(cases: Iterable[Case], modes: Iterable[Mode], tier: Tier = Tier.FULL) -> Iterator[tuple[Case, Mode]]:
    """Every case in every mode in which it means something, mode by mode, as far as a run of this tier goes."""
    cases = list(cases)
    return ((case, mode) for mode in modes for case in cases if applies(case, mode, tier))


def applies(case: Case, mode: Mode, tier: Tier = Tier.FULL) -> bool:
    """Whether a run of this tier has the case in the mode.

    Of a mode in which cases are expensive, a quick run keeps the first derivatives among its few, and what is refused
    before anything is compiled; it leaves out a mode that has no more than its few.
    """
    if not (case.within(tier) and case.within(mode.tier)):
        return False
    if tier < Tier.FULL and mode.tier < Tier.FULL:
        first_of_few = case.within(Tier.FEW) and case.quantity != "second derivatives"
        if mode.tier is Tier.FEW or not (first_of_few or case.raises is not None):
            return False
    if case.quantity == "second derivatives":
        return mode.autodiff and not mode.traced
    if mode.traced:
        return case.property is None and (case.raises is None or case.raises.about_values)
    return not mode.autodiff or (case.property is None and case.raises is None and "gradient" in case.quantity)
