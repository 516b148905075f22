"""A kernel that has two options alone is asked for both, and caught where one makes it forget the other."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest

from unixent_conformance.cases import catalogue
from unixent_conformance.dialects import explain
from unixent_conformance.harnesses import load
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Call, Case, Tier
from unixent_conformance.results import Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.under_test import Subject
from unixent_mutants.plain import plain

OPTIONS = ("weight", "mask", "ignore_index", "label_smoothing", "z_loss", "scale", "softcap", "temperature")
OPTIONS += ("normalizer", "num_classes", "axis")
# Without the default ignore_index, which is no keyword to forget, and what changes the shapes.
KEYWORDS = [name for name in OPTIONS if name not in ("ignore_index", "num_classes", "axis")]


def given(call: Call) -> set[str]:
    options = {name for name in OPTIONS if name in call.options or name in call.arrays()}
    ignored = np.asarray(call.target) == call.options.get("ignore_index", -100)
    return options | ({"ignore_index"} if call.has_indices and ignored.any() else set())


def asked() -> dict[frozenset[str], list[Case]]:
    """By two options, the quick cases of a gradient that have no others."""
    pairs = defaultdict(list)
    for case in catalogue(Tier.QUICK):
        if case.quantity == "logits gradient" and not (case.raises or case.property or case.divisible):
            call = case.build()
            alone = len(given(call)) == 2 and set(call.options) <= {*OPTIONS, "reduction"}
            if alone and not (call.linear or call.statistic or call.tail):
                pairs[frozenset(given(call))].append(case)
    return dict(pairs)


PAIRS = asked()


def test_every_pair_of_options_is_asked_without_another() -> None:
    assert {frozenset(pair) for pair in combinations(OPTIONS, 2)} <= set(PAIRS)


def forgetful(option: str, other: str, value_too: bool) -> Implementation:
    """Right, but for an option beside another."""

    def left(options: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if name != option or other not in options}

    def value_and_grad(logits: Any, target: Any, **options: Any) -> Any:
        whole = {name: value for name, value in options.items() if name not in ("grad_output", "wrt")}
        value = plain.loss(logits, target, **(left(whole) if value_too else whole))
        return value, plain.value_and_grad(logits, target, **left(options))[1]

    return replace(plain, value_and_grad=value_and_grad, options=frozenset({"reduction", option, other}))


@pytest.mark.parametrize("value_too", [False, True])
@pytest.mark.parametrize(("option", "other"), list(permutations(KEYWORDS, 2)))
def test_an_option_that_another_makes_a_kernel_forget_is_caught(option: str, other: str, value_too: bool) -> None:
    assert caught(forgetful(option, other, value_too), frozenset({option, other}))


@pytest.mark.parametrize("option", ["scale", "temperature", "normalizer", "softcap", "z_loss", "label_smoothing"])
def test_an_option_that_padding_makes_a_kernel_forget_is_caught(option: str) -> None:
    assert caught(forgetful(option, "num_classes", True), frozenset({option, "num_classes"}))


def caught(kernel: Implementation, pair: frozenset[str]) -> bool:
    subject = Subject(load("numpy"), kernel)
    return any(explain(run_case(case, subject), case, subject).verdict is Verdict.WRONG for case in PAIRS[pair])
