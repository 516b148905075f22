"""What a library's own loss does under a transform of its framework."""

from __future__ import annotations

import pytest

from unixent_conformance import run
from unixent_conformance.results import Verdict


def test_a_forward_mode_that_gives_zero_is_silently_wrong() -> None:
    """torch 2.13's chunked linear_cross_entropy: reverse mode is right, forward mode is silently 0."""
    pytest.importorskip("torch")
    path = "peers.torch_losses:linear_cross_entropy"
    report = run(path, "torch", features=["class indices"], quick=True, linear=True, isolate=False)
    verdicts = {r.id: r for r in report.cases if r.mode == "forward"}
    result = verdicts["class-indices/plain/float32-mean/gradient"]
    assert result.verdict is Verdict.WRONG, result
    assert "got 0.0" in result.detail
    assert all(r.verdict.ok for r in report.cases if r.mode == "autograd")


def test_a_loss_of_framework_operations_matches_under_every_transform() -> None:
    pytest.importorskip("torch")
    path = "peers.torch_losses:cross_entropy"
    report = run(path, "torch", features=["class indices", "second derivatives"], quick=True, isolate=False)
    assert report.ok, [r for r in report.cases if not r.verdict.ok]
    assert {r.mode for r in report.cases if r.verdict is not Verdict.REFUSES} >= {"autograd", "forward", "vmap"}
