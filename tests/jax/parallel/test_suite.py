"""The conformance suite over a mesh of devices: every option and special value, against the oracle."""

from __future__ import annotations

import pytest

from unixent_conformance.runner import Verdict
from unixent_conformance.split import Request, run_split

FEATURES = ("class indices", "label smoothing", "plus infinity", "no positions", "normalizer", "fused linear chunks")


@pytest.mark.slow
@pytest.mark.parametrize(("data", "model"), [(2, 2), (1, 3)])
def test_the_suite_matches(data: int, model: int) -> None:
    report = run_split(Request("jax", "jax", data, model, features=FEATURES, quick=True), timeout=580)
    assert report.ok, report.to_markdown()
    assert report.counts[Verdict.MATCHES] > 100
