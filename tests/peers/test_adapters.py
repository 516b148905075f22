"""Each adapter that can run here gives the loss of an ordinary call, and refuses what its library lacks."""

from __future__ import annotations

import numpy as np
import pytest

import peers
from peers import PEERS, Peer
from unixent_conformance import run
from unixent_conformance.api import find_tested
from unixent_conformance.results import Verdict

# Compiled for each shape and dtype, or interpreted, which takes minutes; `python benchmarks/peers` has the time.
SLOW = {
    "torch cross_entropy compiled",
    "cut-cross-entropy",
    "cut-cross-entropy triton",
    "liger-kernel",
    "liger-kernel linear",
}


@pytest.fixture(params=PEERS, ids=lambda peer: peer.name)
def peer(request: pytest.FixtureRequest) -> Peer:
    requested: Peer = request.param
    if requested.absent():
        pytest.skip(requested.absent())
    if requested.name in SLOW:
        pytest.skip("takes minutes on a CPU: run it with `python benchmarks/peers`")
    return requested


def test_ordinary_calls_are_right_and_what_is_lacking_is_refused(peer: Peer) -> None:
    features = ["class indices", "normalizer"]
    # scikit-learn's log_loss of half precision is a float64.
    report = run(peer.path, peer.harness, features=features, quick=True, linear=peer.linear, dtypes=["float32"])
    verdicts = {r.id: (r.verdict, r.detail) for r in report.cases}
    assert report.implementation == peer.name
    assert not report.failures, verdicts
    assert report.counts[Verdict.REFUSES], verdicts
    assert report.counts[Verdict.MATCHES] + report.counts[Verdict.DIALECT], verdicts


def test_peers_go_by_name_and_an_unknown_one_lists_those_that_it_may_mean() -> None:
    assert [peers.find(peer.name) for peer in PEERS] == list(PEERS)
    with pytest.raises(LookupError, match="expected one of 'torch cross_entropy'"):
        peers.find("")
    with pytest.raises(LookupError, match="did you mean torch cross_entropy, "):
        peers.find("torch")


def test_implementations_know_their_own_names() -> None:
    for peer in PEERS:
        if not peer.absent() and peer.harness.endswith("arrays_numpy:harness"):
            implementation, harness = find_tested(peer.path, peer.harness)
            assert (implementation.name, harness.name) == (peer.name, "numpy")
            logits, target = np.log(np.array([[0.25, 0.75], [0.5, 0.5]])), np.array([0, 1])
            assert float(implementation.loss(logits, target)) == pytest.approx((np.log(4) + np.log(2)) / 2)
