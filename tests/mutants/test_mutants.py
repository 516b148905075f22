"""The suite can fail, and says why: every wrong implementation is caught by a case whose feature names its fault, and
no convention excuses it that is not its own."""

from __future__ import annotations

import pytest

from unixent_conformance.cases import catalogue
from unixent_mutants import caught, mutants, unexcused
from unixent_mutants.plain import Plain

MUTANTS = mutants()
FEATURES = {case.feature for case in catalogue()}

# Faults that are conventions with a name, and hazards with one: every quick answer of theirs follows it.
CONVENTIONS = {
    "MinusInfinityTimesNothing": {"0·∞ is NaN, gradient too"},
    "MeanOverAllPositions": {"mean over all positions"},
    "WeightsNotInTheDenominator": {"mean over all positions"},
    "IgnoredStillCounted": {"mean over all positions"},
    "TermsForgetTheWeights": {"mean over all positions"},
    "WrapsNegativeTargets": {"index out of range: counted from the end"},
    "ClampsTargets": {"index out of range: clamped"},
    "OutOfRangeIsIgnored": {"index out of range: no target"},
    "OutOfRangeNeverRaises": {"index out of range: NaN"},
    "EveryNegativeIsIgnored": {"index out of range: no target", "index out of range: ignored"},
    "PaddingAcceptsTargets": {"index out of range: no target"},
    "OnlyTheDefaultIsIgnored": {"no ignored index"},
    "SmoothingByTheTargetsWeight": {"smoothing weighed by the target's class"},
    "SmoothingInTheDenominator": {"mean over the target's mass"},
    "WeightsInTheDenominatorOfProbabilities": {"mean over the target's mass"},
    "ProbabilitiesTakenToSumTo1": {"targets taken to sum to 1, gradient only", "computed in half precision"},
    "GradientRoundedBeforeTheMean": {"computed in half precision"},
    "MinusInfinityIsNaN": {"0·∞ is NaN"},
    "InactiveMultipliedByZero": {"NaN of uncounted rows", "NaN of uncounted rows, value only"},
    "FlushesToZero": {"absolute accuracy"},
    "OneMinusP": {"absolute accuracy"},
    "GapRounded": {"absolute accuracy"},
    "CapGradientCancels": {"absolute accuracy"},
    "CapRoundedTwice": {"accuracy of the logits"},
    "SequentialSumOfClasses": {"accuracy of the logits"},
    "ResultInFloat32": {"result in float32"},
    "EntropyOfLogSoftmax": {"absolute accuracy"},
    "LogProbIsLogitMinusLse": {"absolute accuracy"},
    "LogSumSqOfProbabilities": {"absolute accuracy"},
    "OutOfRangeIsClamped": {"index out of range: clamped", "statistics of every row"},
    "OutOfRangeKeepsItsSoftmax": {"index out of range: no target", "index out of range: no target, gradient p"},
    "MaskBroadcasts": {"bad argument accepted"},
    "BoolTargets": {"bad argument accepted"},
    "IntegerLogits": {"bad argument accepted"},
    "OptionsUnchecked": {"bad argument accepted"},
    "UnknownReductionIsMean": {"bad argument accepted"},
    "AnyChunk": {"bad argument accepted"},
}


def test_every_wrong_loss_says_what_is_wrong_and_which_features_should_notice() -> None:
    assert len(MUTANTS) >= 230
    assert all(mutant.__doc__ and mutant.__doc__ != Plain.__doc__ for mutant in MUTANTS.values())
    assert all(mutant.features and FEATURES.issuperset(mutant.features) for mutant in MUTANTS.values())


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_loss_is_caught(name: str) -> None:
    mutant = MUTANTS[name]
    result = caught(mutant)
    assert result is not None, f"{mutant.__doc__} goes unnoticed"
    assert result.feature in mutant.features
    assert result.units > 1


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_loss_is_excused_by_no_convention_but_its_own(name: str) -> None:
    result, dialects = unexcused(MUTANTS[name])
    assert result is not None or dialects == CONVENTIONS.get(name, set()), f"{MUTANTS[name].__doc__} is {dialects}"
