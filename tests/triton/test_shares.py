"""Shares of the classes by the Triton programs beside the composed passes, without processes to share them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from unixent.logit_transform import LogitTransform
from unixent_torch.collectives import LocalShard
from unixent_torch.kernel import KernelSpec, triton
from unixent_torch.vocab_parallel import native, on_cuda
from unixent_torch.vocab_parallel.gradients import shard_gradients
from unixent_torch.vocab_parallel.statistics import shard_losses

C, START, LOCAL = 90, 20, 40
SHARD = LocalShard((), (), START, C, LOCAL)
SPECS = [
    KernelSpec(torch.float32, s, z, LogitTransform(softcap, b), False)
    for s, z, (softcap, b) in itertools.product((0.0, 0.1), (0.0, 1e-2), ((None, 1.0), (3.0, 0.7)))
]


def both(x: Tensor, target: Tensor, weight: Tensor | None, spec: KernelSpec) -> tuple[Tensor, ...]:
    """Losses, statistics and gradients of the share alone, as if no other process held a class."""
    v = torch.rand(x.shape[:-1])
    v[0] = 0
    wrt = ("logits", "target") if target.is_floating_point() else ("logits",)
    operands = (x, target, weight, v)
    losses, stats = shard_losses(*operands, spec, SHARD)
    scale = torch.linspace(0.5, 2, losses.numel()).view(losses.shape)
    grads = shard_gradients(*operands, scale, stats, spec, SHARD, wrt)
    return (losses, stats.pivot_loss, stats.p, stats.coef_sum, stats.logsumexp, *grads)


@pytest.mark.parametrize("target_kind", ["indices", "probabilities"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shares_agree_with_the_composed_passes(
    spec: KernelSpec, weighted: bool, target_kind: str, tiles: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(4, 3, LOCAL) * 4
    x[1, 0, 3:9] = -math.inf
    x[1, 1, 0] = math.nan
    x[1, 2] = x[1, 2].round()  # equal largest ones, maybe in two tiles
    x[2, 0] = torch.linspace(-20, 0, LOCAL)
    index = torch.randint(C, (4, 3))
    index[2] = torch.tensor([START, START + LOCAL - 1, START + LOCAL])
    target = index if target_kind == "indices" else torch.softmax(torch.randn(4, 3, LOCAL), -1) * 0.4
    weight = torch.rand(C) if weighted else None
    taken = not (target_kind == "indices" and spec.label_smoothing)
    assert on_cuda.takes(x, target, weight, spec) == taken
    torch.manual_seed(1)
    got = both(x, target, weight, spec)
    monkeypatch.setattr(triton, "DEVICES", [])
    monkeypatch.setattr(native, "load", lambda: None)
    torch.manual_seed(1)
    for value, due in zip(got, both(x, target, weight, spec), strict=True):
        torch.testing.assert_close(value, due, equal_nan=True, rtol=2e-5, atol=2e-6)


def test_a_share_is_read_once_for_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("statistics_of_index_tiles", "statistics_of_mixed_tiles", "row_gradients"):
        run = getattr(triton, name)
        monkeypatch.setattr(triton, name, lambda *operands, _n=name, _run=run: asked.append(_n) or _run(*operands))
    x = torch.randn(5, LOCAL)
    both(x, torch.randint(C, (5,)), None, SPECS[0])
    both(x, torch.softmax(x, -1), None, SPECS[0])
    assert asked == ["statistics_of_index_tiles", "row_gradients", "statistics_of_mixed_tiles", "row_gradients"]


def test_a_process_without_classes_takes_the_operators() -> None:
    assert not on_cuda.takes(torch.empty(5, 0), torch.zeros(5, dtype=torch.int64), None, SPECS[0])
