"""The conformance suite on the libraries' own helpers: finite answers of theirs are right, or in a named convention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from originals import load
from trl.trainer import utils as of_trl

from unixent import PositionStats
from unixent_conformance import run
from unixent_conformance.implementation import Implementation
from unixent_conformance.results import Verdict

# What none of their functions promises: scalars, nothing at all, and logits of +inf.
ODD = ("no-position-axis", "no-positions", "plus-infinity")
ACCURACIES = {"absolute accuracy", "accuracy of the logits", "computed in half precision"}
ENTROPIES = {"statistics of every row", "entropy with 0·∞ = NaN"}


def helpers(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The log-probability of (logits, target) and the entropy of logits."""
    if name == "trl":
        return of_trl.selective_log_softmax, of_trl.entropy_from_logits
    stand_ins = ("tensordict", "verl", "verl.utils", "verl.utils.device")
    of_verl = load("verl", "verl/utils/torch_functional.py", stand_ins)
    return of_verl.logprobs_from_logits_v2, of_verl.entropy_from_logits


@pytest.mark.parametrize(
    ("library", "no_digits"),
    [
        ("trl", set()),
        # lse - sum p x of half precision: 1.0 for an entropy of 0.75.
        ("verl", {f"statistics/entropy-far-from-0/{dtype}" for dtype in ("float16", "bfloat16")}),
    ],
)
def test_what_the_helpers_give_is_right_or_named(library: str, no_digits: set[str]) -> None:
    log_prob, entropy = helpers(library)

    def position_stats(logits: Any, target: Any, outputs: Any, ignore_index: int = -100, validate: str = "") -> Any:
        (output,) = outputs
        if output == "entropy":
            return PositionStats(entropy=entropy(logits))
        if output == "log_prob":
            return PositionStats(log_prob=log_prob(logits, target))
        raise NotImplementedError(output)

    def loss(logits: Any, target: Any) -> Any:
        raise NotImplementedError

    accepted = frozenset({"logits", "target", "ignore_index", "validate"})
    helper = Implementation(library, loss, position_stats=position_stats, options=accepted)
    report = run(helper, "torch", features=["statistics"], isolate=False, modes=["eager"])
    judged = [case for case in report.cases if not any(f"-{name}/" in case.id for name in ODD)]
    wrong = {case.id.rpartition("/")[0] for case in judged if case.verdict is Verdict.WRONG}
    assert wrong == no_digits
    for output, conventions in (("entropy", ACCURACIES | ENTROPIES), ("log_prob", ACCURACIES)):
        of_output = [case for case in judged if case.id.startswith(f"statistics/{output}-")]
        named = {name for case in of_output for name in case.dialects}
        assert named
        assert named <= conventions, named
        assert sum(case.verdict is Verdict.MATCHES for case in of_output) > 20
