"""The suite does not cry wolf, and its catalogue is what it claims to be."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from unixent_conformance import run
from unixent_conformance.cases import catalogue, find
from unixent_conformance.cases.combinations import FACTORS, allowed
from unixent_conformance.cases.covering_array import covering_array
from unixent_conformance.harness import Mode
from unixent_conformance.model import Case, Tier
from unixent_conformance.selection import select
from unixent_mutants.plain import plain

FEATURES = list(dict.fromkeys(case.feature for case in catalogue()))


# The fused linear form has a plain implementation, and tests, of its own; statistics are no loss, and sparse targets
# are asked of those that declare them.
NOT_PLAIN = ("statistics", "sparse targets")


@pytest.mark.parametrize("feature", [name for name in FEATURES if "fused" not in name and name not in NOT_PLAIN])
def test_a_right_implementation_passes(feature: str) -> None:
    # Of the large ones those of a quick run: `unixent conformance --backend numpy` takes them all.
    report = run(plain, "numpy", features=[feature], quick=feature in ("large inputs", "tile edges"))
    bad = [(r.id, r.detail) for r in report.cases if r.verdict.value != "matches"]
    assert not bad, bad[:3]


@pytest.mark.parametrize("feature", ["memory layout", "inputs unmutated", "empty mean", "invariances"])
def test_what_has_few_options_is_asked_in_a_quick_run_too(feature: str) -> None:
    few = {"logits", "target", "reduction", "ignore_index"}
    calls = [case.build() for case in catalogue(Tier.QUICK, features=(feature,))]
    assert any(few.issuperset({*call.options, *call.arrays()}) and call.has_indices for call in calls)


def test_ids_are_unique_stable_and_plain() -> None:
    ids = [case.id for case in catalogue()]
    assert len(set(ids)) == len(ids)
    assert all(case.id.startswith(case.feature.replace(" ", "-") + "/") for case in catalogue())
    assert not any(set(" ,[]#\t") & set(id) for id in ids)


def test_a_case_needs_what_its_call_does() -> None:
    silent = [case for case in catalogue(Tier.QUICK) if case.raises is None and case.build().needs() - case.needs]
    assert not silent, [case.id for case in silent]


def test_a_quick_run_of_a_feature_asks_no_less_of_it_than_a_quick_run_of_all() -> None:
    modes = (
        Mode("eager"),
        Mode("sampled", tier=Tier.SAMPLED),
        Mode("grad", autodiff=True, tier=Tier.CORE),
        Mode("jit", traced=True, autodiff=True, tier=Tier.CORE),
        Mode("vmap", traced=True, autodiff=True, tier=Tier.FEW),
    )
    whole = set(select(catalogue(Tier.QUICK), modes, Tier.QUICK))
    alone = {pair for name in FEATURES for pair in select(catalogue(Tier.QUICK, features=(name,)), modes)}
    assert whole <= alone


def test_quick_cases_are_few_and_of_every_feature() -> None:
    quick = catalogue(Tier.QUICK)
    assert {case.feature for case in quick} == set(FEATURES)
    assert len(quick) < len(catalogue()) / 4


def test_a_higher_tier_has_more_cases() -> None:
    sizes = [len(catalogue(tier)) for tier in Tier]
    assert sizes == sorted(set(sizes))


def test_sampled_cases_ask_each_quick_input_something_and_what_is_difficult_everything() -> None:
    quick, sampled = catalogue(Tier.QUICK), catalogue(Tier.SAMPLED)
    assert set(sampled) <= set(quick)
    assert len(sampled) < 2 * len(quick) / 3
    assert {_input(case) for case in sampled} == {_input(case) for case in quick}
    for feature in ("minus infinity", "NaN", "uncounted rows", "confident rows", "batch invariance", "bad input"):
        assert [c for c in quick if c.feature == feature] == [c for c in sampled if c.feature == feature]
    for feature in ("mask", "z-loss", "combinations", "target dtypes", "fused linear"):
        assert len({case.quantity for case in sampled if case.feature == feature}) > 1, feature


def _input(case: Case) -> str:
    return case.id.rpartition("/")[0]


def test_core_cases_are_a_few_of_every_feature_that_a_trace_can_show() -> None:
    core, quick = catalogue(Tier.CORE), catalogue(Tier.QUICK)
    assert all(case.within(Tier.QUICK) and case.property is None for case in core)
    differentiated = {case.feature for case in quick if case.quantity == "target gradient" and not case.raises}
    assert {case.feature for case in core if case.quantity == "target gradient"} == differentiated
    untraceable = {"bad input", "fused linear bad input", "invariances", "inputs unmutated", "batch invariance"}
    assert {case.feature for case in core} >= set(FEATURES) - untraceable
    for feature in ("mask", "z-loss", "combinations", "confident rows"):
        assert {case.quantity for case in core if case.feature == feature} >= {"loss", "logits gradient"}


def test_the_few_are_small_gradients_of_features_that_a_transform_can_show() -> None:
    few = [case for case in catalogue(Tier.FEW) if case.quantity != "second derivatives"]
    assert all(case.within(Tier.CORE) and ("gradient" in case.quantity or case.raises) for case in few)
    assert max(case.build().logits.size for case in few if not case.build().linear) <= 160
    shown = {case.feature for case in few}
    assert shown >= {"class indices", "class probabilities", "mask", "z-loss", "softcap", "uncounted rows"}
    assert shown >= {"out-of-range targets", "normalizer", "label smoothing", "upstream gradient", "fused linear"}


@pytest.mark.parametrize("id", ["combinations", "mask", "large-inputs/32000-classes/float32/gradient"])
def test_inputs_are_the_same_every_time(id: str) -> None:
    case = next(case for case in catalogue() if case.id.startswith(id))
    one, other = case.build(), case.build()
    for name, array in one.arrays().items():
        assert array is not other.arrays()[name]
        np.testing.assert_array_equal(array.view(np.uint8), other.arrays()[name].view(np.uint8))


def test_unknown_names_are_errors() -> None:
    with pytest.raises(LookupError, match="no case is called 'nope'"):
        find("nope")
    with pytest.raises(ValueError, match="no such feature: nope"):
        catalogue(features=("mask", "nope"))


@pytest.mark.parametrize("strength", [2, 3])
def test_covering_array_covers(strength: int) -> None:
    rows = covering_array(FACTORS, strength, allowed)
    assert all(allowed(row) for row in rows)
    for names in combinations(FACTORS, strength):
        seen = {tuple(map(repr, (row[name] for name in names))) for row in rows}
        for levels in product(*(FACTORS[name] for name in names)):
            if allowed(dict(zip(names, levels, strict=True))):
                assert tuple(map(repr, levels)) in seen


def test_a_quick_run_leaves_a_mode_of_compilations_its_few_and_its_errors() -> None:
    compiled, called = Mode("jit", traced=True, autodiff=True, tier=Tier.CORE), Mode("eager")
    cases = catalogue(Tier.QUICK)
    left = [case for case, _ in select(cases, [compiled], Tier.QUICK)]
    few = {case.feature for case, _ in select(cases, [compiled]) if case.within(Tier.FEW)}
    assert few <= {case.feature for case in left}
    assert all(case.within(Tier.FEW) or case.raises for case in left)
    assert list(select(cases, [called], Tier.QUICK)) == list(select(cases, [called]))
    assert not list(select(cases, [Mode("forward", autodiff=True, tier=Tier.FEW)], Tier.QUICK))


def test_a_thorough_mode_has_every_case_unless_each_is_a_call_per_element() -> None:
    compiled, forward = Mode("jit", traced=True, tier=Tier.CORE), Mode("forward", autodiff=True, tier=Tier.FEW)
    assert len(list(select(catalogue(), [compiled.thorough()]))) > 10 * len(list(select(catalogue(), [compiled])))
    assert forward.thorough() == forward
