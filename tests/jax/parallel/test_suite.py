"""The conformance suite over a mesh of devices: options and special values, against the oracle."""

from __future__ import annotations

import pytest

from unixent_conformance.model import Tier
from unixent_conformance.report import to_markdown
from unixent_conformance.results import Verdict
from unixent_conformance.split import Request, run_split

# Over both axes what differs by position and what fills up a mesh, one question of each input, since XLA compiles each;
# over classes alone, which three devices cannot share equally, what differs by class.
LAYOUTS = {
    (2, 2, Tier.SAMPLED): ("class indices", "no positions", "normalizer", "statistics"),
    (1, 3, Tier.QUICK): (
        *("label smoothing", "plus infinity", "num_classes", "fused linear chunks"),
        *("sparse targets", "fused linear sparse targets", "fused linear statistics"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("data", "model", "tier"), LAYOUTS)
def test_the_suite_matches(data: int, model: int, tier: Tier) -> None:
    features = LAYOUTS[data, model, tier]
    report = run_split(Request("jax", "jax", data, model, features=features, tier=tier), timeout=580)
    assert report.ok, to_markdown(report)
    assert {result.feature for result in report.cases if result.verdict is Verdict.MATCHES} == {*features}
    assert report.counts[Verdict.MATCHES] >= 50
