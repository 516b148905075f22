"""Cases of every feature through all four backends: no two are further apart than the error model allows, errors and
exact values not at all.

Each backend runs the whole catalogue against the oracle in its own environment. Here, at the oldest versions, are the
core cases, every output of the statistics, and of what is quick all errors and all that is difficult; JAX, which
compiles every new shape, is given one question of each input. `unixent conformance compare --thorough` leaves nothing
out.
"""

from __future__ import annotations

import pytest

from unixent_conformance import agreement as module
from unixent_conformance import compare
from unixent_conformance.cases import DIFFICULT, catalogue
from unixent_conformance.model import Case, Tier

BACKENDS = ("numpy", "torch", "jax", "mindspore")
for name in BACKENDS[1:]:
    pytest.importorskip(name, reason="needs torch, jax and mindspore in one environment: tox -e trio")


def is_chosen(case: Case) -> bool:
    is_core = case.within(Tier.CORE) or case.raises is not None or case.property is not None
    return is_core or case.feature in DIFFICULT or ("position_stats" in case.needs and "plain" in case.id)


# Asked of a framework's differentiation, not by calls.
DIFFERENTIATED = ("second derivatives", "gradients of two passes")
CALLS = [case for case in catalogue(Tier.QUICK) if case.quantity not in DIFFERENTIATED and is_chosen(case)]


def test_every_feature_and_output_is_among_them() -> None:
    quick = [case for case in catalogue(Tier.QUICK) if case.quantity not in DIFFERENTIATED]
    for property_of in (lambda case: case.feature, lambda case: case.build().statistic, lambda case: case.quantity):
        assert {property_of(case) for case in CALLS} == {property_of(case) for case in quick}


@pytest.mark.parametrize("feature", dict.fromkeys(case.feature for case in CALLS))
def test_no_two_backends_disagree(feature: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "catalogue", lambda tier, features: [c for c in CALLS if c.feature in features])
    agreement = compare(BACKENDS, features=[feature], quick=True)
    assert agreement.ok, "\n".join(f"{d.id}: {d.detail}" for d in agreement.disagreements[:10])
    for pair in agreement.pairs:
        # Nothing is refused, but batch invariance by JAX, as declared.
        due = {
            case.id
            for case in CALLS
            if case.feature == feature
            and ("jax" not in pair or (case.within(Tier.SAMPLED) and feature != "batch invariance"))
        }
        assert {difference.id for difference in agreement.of(pair)} >= due, pair
