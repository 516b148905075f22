"""Which cases are run in which modes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from unixent_conformance.harness import Mode
from unixent_conformance.model import Case, Tier
from unixent_conformance.names import did_you_mean, require_known, resembling
from unixent_conformance.results import plural

Pair = tuple[Case, Mode]

# What lists the features.
LISTED = "unixent conformance list features"

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Choice:
    """What a run is asked for by name; nothing where it is asked for all.

    quick: the cases that make a run of seconds. features, modes, dtypes (of the inputs or the result): these alone.
    skip: features, or patterns of ids, to leave out. huge: cases of several GiB besides.
    """

    quick: bool = False
    features: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    huge: bool = False

    def of(self, cases: Sequence[Case], modes: Sequence[Mode], everything: Sequence[Case] = ()) -> list[Pair]:
        """The chosen cases, mode by mode; what is asked for by feature or mode is asked as far as the mode goes. A
        feature may be one of ``everything`` of which ``cases`` has none: an implementation may lack what it asks."""
        require_known("modes", self.modes, [mode.name for mode in modes])
        everything = everything or cases
        require_known("features", self.features, (case.feature for case in everything), LISTED)
        require_known("dtypes", self.dtypes, DTYPES)
        for pattern in self.skip:
            if not any(_matches(pattern, case) for case in everything):
                near = resembling(pattern, dict.fromkeys(case.feature for case in everything))
                raise ValueError(f"skip: no case or feature matches {pattern!r}{did_you_mean(near)}")
        tier = Tier.QUICK if self.quick else Tier.FULL
        asked = [case for case in cases if case.within(tier) and self.takes(case)]
        named = [mode for mode in modes if not self.modes or mode.name in self.modes]
        return list(select(asked, named, Tier.FULL if self.features or self.modes else tier))

    def takes(self, case: Case) -> bool:
        if self.features and case.feature not in self.features:
            return False
        if self.dtypes and not any(f"dtype:{dtype}" in case.needs for dtype in self.dtypes):
            return False
        return not any(_matches(pattern, case) for pattern in self.skip)

    def left_out(self, pairs: Collection[Pair], cases: Sequence[Case], modes: Sequence[Mode]) -> Iterator[str]:
        """What the largest run would ask too, a line each."""
        more, ran = sum(1 for _ in select(cases, modes)) - len(pairs), {mode.name for _, mode in pairs}
        words = {"quick cases": self.quick, "some features": self.features, "some modes": self.modes}
        words |= {"some dtypes": self.dtypes, "skipping some": self.skip}
        chosen = " and ".join(word for word, asked in words.items() if asked)
        if more:
            yield f"{plural(more, 'case')}{f', since {chosen} were asked for' if chosen else ''}"
        absent = [mode.name for mode in modes if mode.name not in ran]
        if absent:
            yield f"the modes {', '.join(absent)}"


def _matches(pattern: str, case: Case) -> bool:
    return fnmatchcase(case.id, pattern) or case.feature == pattern


def by_weight(pairs: Sequence[Pair]) -> list[Pair]:
    """The same, what tells most first: the smallest tiers of every feature before the larger ones."""
    turns: dict[tuple[Tier, str, str], int] = {}

    def weight(pair: Pair) -> tuple[int, Tier]:
        case, mode = pair
        tier = min((tier for tier in Tier if case.within(tier)), default=Tier.FULL)
        turns[tier, case.feature, mode.name] = turn = turns.get((tier, case.feature, mode.name), 0) + 1
        return (turn if tier < Tier.FULL else turn + 1000, tier)

    return sorted(pairs, key=weight)


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
    if case.quantity == "gradients of two passes":  # of reverse mode
        return mode.autodiff and not mode.needs
    if mode.traced:
        return case.property is None and (case.raises is None or case.raises.about_values)
    return not mode.autodiff or (case.property is None and case.raises is None and "gradient" in case.quantity)
