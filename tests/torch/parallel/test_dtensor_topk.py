"""Sparse targets beside DTensors: ids and the teacher's numbers lie as the positions do, or are moved there."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

import unixent

# Positions and K in even parts: see `Ranks.place`.
N, C, K, D = 8, 7, 4, 4
GENERATOR = torch.Generator().manual_seed(7)
LOGITS = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64) * 3
LOGITS[1, 6] += 30
IDS = torch.rand(N, C, generator=GENERATOR).argsort(-1)[:, :K]
IDS[0, 1], IDS[2, 1:] = IDS[0, 0], -100
PROBS = torch.rand(N, K, generator=GENERATOR, dtype=torch.float64) / 4
MASK = torch.tensor([1.0, 0.5, 1.0, 0.0, 2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
WEIGHT = torch.rand(C, generator=GENERATOR, dtype=torch.float64) + 0.5
HIDDEN, CLASSIFIER, BIAS = (
    torch.randn(size, generator=GENERATOR, dtype=torch.float64) for size in ((N, D), (C, D), (C,))
)
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 5.0, "mask": MASK}
PLACES = tuple(itertools.product([Replicate(), Shard(0), Shard(1)], repeat=2))
TAILS = ("drop", "renormalize", "bucket")


def close(ranks, got, whole):
    """What this rank holds of a DTensor, against its part of the whole."""
    assert isinstance(got, DTensor)
    assert got.shape == whole.shape
    due = ranks.local(whole, got.placements)
    torch.testing.assert_close(got.detach().to_local(), due, rtol=1e-11, atol=1e-13)


def target_of(ids, values, tail):
    log = {"log_probs": values} if tail == "renormalize" else {"probs": values}
    return unixent.TopK(ids, tail=tail, **log)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_every_placement_gives_the_whole_loss(on_ranks, tail, reduction):
    """Classes, positions, both and neither, on both mesh axes; the target whole on every process, or a DTensor of other
    placements than the positions have."""
    options = {**OPTIONS, "reduction": reduction, "weight": WEIGHT, "validate": "off"}
    x, q = LOGITS.clone().requires_grad_(), PROBS.clone().requires_grad_()
    loss = unixent.cross_entropy(x, target_of(IDS, q, tail), **options)
    upstream = torch.linspace(-1, 1, N, dtype=torch.float64) if reduction == "none" else None
    loss.backward(upstream)
    of_target = itertools.cycle([(Replicate(), Shard(0)), (Shard(1), Replicate()), (Replicate(), Replicate())])

    def work(ranks):
        for placements, lies in zip(PLACES, turns, strict=True):
            own_x, own_q = (ranks.place(*each).requires_grad_() for each in ((LOGITS, placements), (PROBS, lies)))
            own = target_of(ranks.place(IDS, lies), own_q, tail)
            result = unixent.cross_entropy(own_x, own, **options)
            close(ranks, result, loss)
            result.backward(None if upstream is None else ranks.place(upstream, result.placements))
            assert own_x.grad.placements == placements
            close(ranks, own_x.grad, x.grad)
            close(ranks, own_q.grad, q.grad)
            given = {"grad_output": upstream, "wrt": ("logits", "target"), **options}
            for ids, values in ((IDS, PROBS), (ranks.place(IDS, lies), own_q.detach())):
                _, (again, of_values) = unixent.value_and_grad(own_x.detach(), target_of(ids, values, tail), **given)
                assert again.placements == placements
                close(ranks, again, x.grad)
                close(ranks, of_values, q.grad)
                if isinstance(values, DTensor):
                    assert of_values.placements == lies

    turns = list(itertools.islice(of_target, len(PLACES)))
    on_ranks(2, 2, work)


@pytest.mark.parametrize("tail", TAILS)
def test_second_derivatives_and_the_padded_vocabulary(on_ranks, tail):
    direction = torch.randn(N, C, generator=GENERATOR, dtype=torch.float64)
    target = target_of(IDS.clamp(max=4), PROBS, tail)
    options = {**OPTIONS, "num_classes": 5}

    def derivatives(x, along):
        (grad,) = torch.autograd.grad(unixent.cross_entropy(x, target, **options), x, create_graph=True)
        return grad, torch.autograd.grad((grad * along).sum(), x)[0]

    expected = derivatives(LOGITS.clone().requires_grad_(), direction)

    def work(ranks):
        for placements in ((Shard(0), Shard(1)), (Shard(1), Shard(1))):
            x = ranks.place(LOGITS, placements).requires_grad_()
            for got, due in zip(derivatives(x, ranks.place(direction, placements)), expected, strict=True):
                close(ranks, got, due)

    on_ranks(2, 2, work)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    ("by_hidden", "by_classes"),
    [
        ((Shard(0), Replicate()), (Replicate(), Shard(0))),
        ((Replicate(), Replicate()), (Shard(0), Shard(0))),
        ((Shard(0), Shard(0)), (Replicate(), Replicate())),
    ],
)
def test_the_fused_form_has_whole_gradients(on_ranks, by_hidden, by_classes, tail):
    leaves = [each.clone().requires_grad_() for each in (HIDDEN, CLASSIFIER, BIAS, PROBS)]
    names, options = ("hidden", "classifier", "bias", "target"), {**OPTIONS, "weight": WEIGHT, "chunk": 2}
    loss = unixent.linear_cross_entropy(*leaves[:2], target_of(IDS, leaves[3], tail), bias=leaves[2], **options)
    loss.backward()

    def work(ranks):
        places = (by_hidden, by_classes, by_classes, (Replicate(), Shard(0)))
        own = [ranks.place(leaf, lies).requires_grad_() for leaf, lies in zip(leaves, places, strict=True)]
        target = target_of(IDS, own[3], tail)
        result = unixent.linear_cross_entropy(*own[:2], target, bias=own[2], **options)
        close(ranks, result, loss)
        result.backward()
        plain = [each.detach() for each in own]
        target = target_of(IDS, plain[3], tail)
        _, both = unixent.linear_value_and_grad(*plain[:2], target, bias=plain[2], wrt=names, **options)
        for leaf, each, again in zip(leaves, own, both, strict=True):
            assert each.grad.placements == each.placements == again.placements
            close(ranks, each.grad, leaf.grad)
            close(ranks, again, leaf.grad)

    on_ranks(2, 2, work)


def test_the_loss_beside_statistics_lies_as_the_positions_do(on_ranks):
    target = target_of(IDS, PROBS, "bucket")
    expected = unixent.position_stats(LOGITS, target, outputs=("loss", "entropy"))

    def work(ranks):
        stats = unixent.position_stats(ranks.place(LOGITS, (Shard(0), Shard(1))), target, outputs=("loss", "entropy"))
        assert stats.loss.placements == stats.entropy.placements == (Shard(0), Replicate())
        close(ranks, stats.loss, expected.loss)
        close(ranks, stats.entropy, expected.entropy)

    on_ranks(2, 2, work)


def test_an_id_out_of_range_is_nan_or_an_error_on_all_ranks(on_ranks):
    bad = IDS.clone()
    bad[2, 1] = C

    def work(ranks):
        x = ranks.place(LOGITS, (Shard(0), Shard(1)))
        with pytest.raises(unixent.TargetRangeError, match=r"target.ids: .* got 7 at position \(2, 1\)"):
            unixent.cross_entropy(x, target_of(bad, PROBS, "bucket"))
        own = target_of(ranks.place(bad, (Replicate(), Shard(0))), PROBS, "bucket")
        loss = unixent.cross_entropy(x, own, reduction="none")
        assert torch.equal(loss.to_local().isnan(), ranks.local((bad == C).any(-1), loss.placements))
        with pytest.raises(unixent.TargetRangeError, match=r"target.ids: .* got 7 at position \(2, 1\)"):
            unixent.cross_entropy(x, own, validate="full")

    on_ranks(2, 2, work)


def test_what_a_process_has_a_part_of_is_refused(on_ranks):
    def work(ranks):
        x = ranks.place(LOGITS, (Shard(0), Shard(1)))
        with pytest.raises(unixent.BackendError, match="target: expected a DTensor where its gradient is asked for"):
            unixent.cross_entropy(x, target_of(IDS, PROBS.clone().requires_grad_(), "drop"))
        with pytest.raises(unixent.BackendError, match="ids: expected a local tensor, since logits or hidden are"):
            unixent.cross_entropy(LOGITS, target_of(ranks.place(IDS, (Shard(0), Replicate())), PROBS, "drop"))

    on_ranks(2, 2, work)
