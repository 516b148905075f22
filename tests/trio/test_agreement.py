"""The quick catalogue through all four backends: no two are further apart than the error model allows, errors and exact
values not at all.

Each backend runs the whole catalogue against the oracle in its own environment. JAX compiles every new shape, so it is
given one question of each quick input here. `unixent conformance compare --thorough` leaves nothing out.
"""

from __future__ import annotations

import pytest

from unixent_conformance import compare
from unixent_conformance.cases import catalogue
from unixent_conformance.model import Tier

BACKENDS = ("numpy", "torch", "jax", "mindspore")
for name in BACKENDS[1:]:
    pytest.importorskip(name, reason="needs torch, jax and mindspore in one environment: tox -e trio")

# Second derivatives are asked of a framework's differentiation, not by calls.
CALLS = [case for case in catalogue(Tier.QUICK) if case.quantity != "second derivatives"]


@pytest.mark.parametrize("feature", dict.fromkeys(case.feature for case in CALLS))
def test_no_two_backends_disagree(feature: str) -> None:
    agreement = compare(BACKENDS, features=[feature], quick=True)
    assert agreement.ok, "\n".join(f"{d.id}: {d.detail}" for d in agreement.disagreements[:10])
    for pair in agreement.pairs:
        # Nothing is refused, but batch invariance by JAX and statistics by MindSpore, as they declare.
        due = {
            case.id
            for case in CALLS
            if case.feature == feature
            and ("jax" not in pair or (case.within(Tier.SAMPLED) and feature != "batch invariance"))
            and ("mindspore" not in pair or "position_stats" not in case.needs)
        }
        assert {difference.id for difference in agreement.of(pair)} >= due, pair
