"""DTensor logits say by themselves how they are split; where torch's own ways with them fail is shown beside."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel

import unixent

GENERATOR = torch.Generator().manual_seed(3)
LOGITS = torch.randn(3, 5, 7, generator=GENERATOR, dtype=torch.float64) * 3
INDEX = torch.randint(7, (3, 5), generator=GENERATOR)
PROBABILITIES = torch.rand(3, 5, 7, generator=GENERATOR, dtype=torch.float64)
MASK = torch.rand(3, 5, generator=GENERATOR, dtype=torch.float64)
UPSTREAM = torch.randn(3, 5, generator=GENERATOR, dtype=torch.float64)


def part(tensor, mesh, placements):
    """The part of this rank, as torch.chunk cuts, one mesh axis after the other."""
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            size = tensor.shape[placement.dim]
            most = -(-size // mesh.size(axis))
            start = min(size, most * mesh.get_local_rank(axis))
            tensor = tensor.narrow(placement.dim, start, min(most, size - start))
    return tensor.detach().clone()


def place(tensor, mesh, placements):
    """A DTensor without a collective: redistribute keeps plans of uneven parts that threads must not share."""
    local, shape, stride = part(tensor, mesh, placements), tensor.shape, tensor.stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride)


def close(got, whole, rtol=1e-12):
    """What this rank holds of a DTensor, against its part of the whole."""
    expected = part(whole, got.device_mesh, got.placements)
    assert isinstance(got, DTensor)
    assert got.shape == whole.shape
    torch.testing.assert_close(got.detach().to_local(), expected, rtol=rtol, atol=1e-13)


def whole(target, **options):
    x = LOGITS.clone().requires_grad_()
    q = target.clone().requires_grad_(target.is_floating_point())
    loss = unixent.cross_entropy(x, q, **options)
    loss.backward(UPSTREAM if loss.ndim else None)
    return loss, x.grad, q.grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["indices", "probabilities"])
def test_every_placement_gives_the_whole_loss(on_ranks, target, reduction):
    """Classes, positions, both and neither, on both mesh axes; 3 rows over 4 ranks leave one without any."""
    options = {"reduction": reduction, "label_smoothing": 0.1, "mask": MASK}
    loss, grad, by_target = whole(target, **options)

    def work(ranks):
        for placements in itertools.product([Replicate(), Shard(0), Shard(1), Shard(2)], repeat=2):
            x = place(LOGITS, ranks.mesh, placements).requires_grad_()
            own = target if by_target is None else place(target, ranks.mesh, placements).requires_grad_()
            local_loss = unixent.cross_entropy(x, own, **options)
            assert isinstance(local_loss, DTensor)
            close(local_loss, loss)
            local_loss.backward(place(UPSTREAM, ranks.mesh, local_loss.placements) if local_loss.ndim else None)
            assert x.grad.placements == placements
            close(x.grad, grad)
            if by_target is not None:
                close(own.grad, by_target)
            upstream = UPSTREAM if local_loss.ndim else None
            _, again = unixent.value_and_grad(x.detach(), own.detach(), grad_output=upstream, **options)
            assert again.placements == placements
            close(again, grad)

    on_ranks(2, 2, work)


def test_the_result_lies_as_the_positions_do(on_ranks):
    def work(ranks):
        x = place(LOGITS, ranks.mesh, [Shard(1), Shard(2)])
        assert unixent.cross_entropy(x, INDEX).placements == (Replicate(), Replicate())
        assert unixent.cross_entropy(x, INDEX, reduction="none").placements == (Shard(1), Replicate())
        terms = unixent.loss_terms(x, INDEX)
        assert {term.placements for term in terms} == {(Replicate(), Replicate())}
        close(terms.numerator, unixent.loss_terms(LOGITS, INDEX).numerator)
        # With the classes first, the dimensions behind them count one less among the positions.
        y = place(LOGITS.movedim(-1, 0), ranks.mesh, [Shard(2), Shard(0)])
        moved = unixent.cross_entropy(y, INDEX, axis=0, reduction="none")
        assert moved.placements == (Shard(1), Replicate())
        close(moved, unixent.cross_entropy(LOGITS, INDEX, reduction="none"))

    on_ranks(2, 2, work)


def test_targets_and_masks_may_be_dtensors(on_ranks):
    """Of any placements on the same mesh, since one number a position is quickly moved; weights are gathered whole."""
    weight = torch.linspace(0.1, 1, 7, dtype=torch.float64)
    expected = unixent.cross_entropy(LOGITS, INDEX, mask=MASK, weight=weight)

    def work(ranks):
        x = place(LOGITS, ranks.mesh, [Shard(0), Shard(2)])
        for placements in itertools.product([Replicate(), Shard(0), Shard(1)], repeat=2):
            loss = unixent.cross_entropy(
                x,
                place(INDEX, ranks.mesh, placements),
                mask=place(MASK, ranks.mesh, placements),
                weight=place(weight, ranks.mesh, [Shard(0), Replicate()]),
                normalizer=None,
            )
            close(loss, expected)

    on_ranks(2, 2, work)


def refused(text, *arguments, **options):
    with pytest.raises(unixent.BackendError, match=text):
        unixent.cross_entropy(*arguments, **options)


def test_placements_that_do_not_fit_are_refused(on_ranks):
    def work(ranks):
        mesh = ranks.mesh
        x = place(LOGITS, mesh, [Shard(0), Shard(2)])
        part = DTensor.from_local(LOGITS.clone(), mesh, [Replicate(), Partial()], run_check=False)
        refused(r"logits: expected placements Shard and Replicate; got .*Partial.*redistribute", part, INDEX)
        refused("parallel: expected None beside logits that are a DTensor", x, INDEX, parallel=ranks.config)
        other = place(PROBABILITIES, mesh, [Replicate(), Shard(2)])
        refused("target: expected probabilities that lie as the scores do", x, other)
        refused("target: expected a local tensor, since logits or hidden are; got a DTensor", LOGITS, other)
        refused("mask: expected a local tensor", LOGITS, INDEX, mask=place(MASK, mesh, [Shard(0), Shard(1)]))
        asked = PROBABILITIES.clone().requires_grad_()
        refused("target: expected a DTensor where its gradient is asked for", x, asked)
        with pytest.raises(unixent.ShapeError, match=r"expected class indices \(integer\) of shape \(3, 5\)"):
            unixent.cross_entropy(x, INDEX[1:])

    on_ranks(2, 2, work)


def test_an_index_out_of_range_is_nan_or_an_error_on_all_ranks(on_ranks):
    """NaN at its position, since no process may raise alone; an error on all where the targets are whole."""
    bad = INDEX.clone()
    bad[2, 1] = 7

    def work(ranks):
        x = place(LOGITS, ranks.mesh, [Shard(0), Shard(2)])
        with pytest.raises(unixent.TargetRangeError, match=r"got 7 at position \(2, 1\)"):
            unixent.cross_entropy(x, bad)
        loss = unixent.cross_entropy(x, place(bad, ranks.mesh, [Shard(0), Replicate()]), reduction="none")
        actual = loss.to_local().isnan()
        assert torch.equal(actual, part(bad == 7, ranks.mesh, loss.placements))
        with pytest.raises(unixent.TargetRangeError, match=r"got 7 at position \(2, 1\)"):
            unixent.cross_entropy(x, place(bad, ranks.mesh, [Shard(0), Replicate()]), validate="full")

    on_ranks(2, 2, work)


# torch's loss_parallel beside ours, at the same logits: [6, 8], the classes split.
FLAT = torch.randn(6, 8, generator=GENERATOR)
LABELS = torch.randint(8, (6,), generator=GENERATOR)
SHARES = torch.softmax(torch.randn(6, 8, generator=GENERATOR), -1)


def ours(mesh, placements, logits, target, **options):
    """Value and gradient of the split loss, against those of the whole."""
    x = place(logits, mesh, placements).requires_grad_()
    leaf = logits.clone().requires_grad_()
    expected = unixent.cross_entropy(leaf, target, **options)
    expected.backward()
    actual = unixent.cross_entropy(x, target, **options)
    actual.backward()
    close(actual, expected, 1e-6)
    close(x.grad, leaf.grad, 1e-5)


def stock(on_ranks, data, model, placements, logits, target, **options):
    """torch's own loss of DTensors, under its loss_parallel; the local gradient and the part of the whole one."""

    def work(ranks):
        mesh = ranks.mesh if len(placements) == 2 else ranks.mesh["tp"]
        x = place(logits, mesh, placements).requires_grad_()
        as_positions = [Replicate() if p == Shard(1) else p for p in placements]
        y = place(target, mesh, placements if target.is_floating_point() else as_positions)
        F.cross_entropy(x, y, **options).backward()
        leaf = logits.clone().requires_grad_()
        F.cross_entropy(leaf, target, **options).backward()
        return x.grad.to_local(), part(leaf.grad, mesh, placements)

    with loss_parallel():  # it changes what all threads do
        return on_ranks(data, model, work)


def test_smoothing_which_loss_parallel_refuses(on_ranks):
    with pytest.raises(RuntimeError, match="Partial"):
        stock(on_ranks, 1, 2, [Shard(1)], FLAT, LABELS, label_smoothing=0.1)
    on_ranks(1, 2, lambda ranks: ours(ranks.mesh["tp"], [Shard(1)], FLAT, LABELS, label_smoothing=0.1))


def test_probabilities_that_loss_parallel_gets_wrong(on_ranks):
    for gradient, due in stock(on_ranks, 1, 2, [Shard(1)], FLAT, SHARES):
        assert not torch.allclose(gradient, due, rtol=1e-2)
    on_ranks(1, 2, lambda ranks: ours(ranks.mesh["tp"], [Shard(1)], FLAT, SHARES))


def test_two_mesh_axes_which_loss_parallel_refuses(on_ranks):
    def refused_here(ranks):
        x = place(FLAT, ranks.mesh, [Shard(0), Shard(1)])
        with pytest.raises(NotImplementedError, match="one-dimensional DeviceMesh"):
            F.cross_entropy(x, place(LABELS, ranks.mesh, [Shard(0), Replicate()]))

    with loss_parallel():
        on_ranks(2, 2, refused_here)
    on_ranks(2, 2, lambda ranks: ours(ranks.mesh, [Shard(0), Shard(1)], FLAT, LABELS))


def test_an_empty_shard_on_which_loss_parallel_crashes(on_ranks):
    # 9 classes in parts of 3, 3, 3 and none.
    logits = torch.cat([FLAT, FLAT[:, :1]], 1)
    with pytest.raises((IndexError, RuntimeError)):
        stock(on_ranks, 1, 4, [Shard(1)], logits, LABELS)
    on_ranks(1, 4, lambda ranks: ours(ranks.mesh["tp"], [Shard(1)], logits, LABELS))


HIDDEN = torch.randn(5, 3, 4, generator=GENERATOR, dtype=torch.float64)
CLASSIFIER = torch.randn(7, 4, generator=GENERATOR, dtype=torch.float64)
BIAS = torch.randn(7, generator=GENERATOR, dtype=torch.float64)
TARGET = torch.randint(7, (5, 3), generator=GENERATOR)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("by_hidden", "by_classes"),
    [
        ([Shard(0), Replicate()], [Replicate(), Shard(0)]),
        ([Replicate(), Replicate()], [Shard(0), Shard(0)]),
        ([Shard(0), Shard(1)], [Replicate(), Replicate()]),
        ([Replicate(), Shard(1)], [Shard(0), Replicate()]),
    ],
)
def test_the_fused_form_has_whole_gradients(on_ranks, by_hidden, by_classes, reduction):
    """Every gradient is whole and lies as its tensor does: the classifier's is summed over the positions."""
    upstream = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3) if reduction == "none" else None
    wrt = ("hidden", "classifier", "bias")
    loss, expected = unixent.linear_value_and_grad(
        HIDDEN, CLASSIFIER, TARGET, bias=BIAS, wrt=wrt, reduction=reduction, grad_output=upstream
    )

    def work(ranks):
        mesh = ranks.mesh
        leaves = [
            place(HIDDEN, mesh, by_hidden),
            place(CLASSIFIER, mesh, by_classes),
            place(BIAS, mesh, by_classes),
        ]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        actual = unixent.linear_cross_entropy(*leaves[:2], TARGET, bias=leaves[2], reduction=reduction)
        close(actual, loss)
        actual.backward(None if upstream is None else place(upstream, mesh, actual.placements))
        plain = [leaf.detach() for leaf in leaves]
        _, again = unixent.linear_value_and_grad(
            *plain[:2], TARGET, bias=plain[2], wrt=wrt, reduction=reduction, grad_output=upstream
        )
        for leaf, both, due in zip(leaves, again, expected, strict=True):
            assert leaf.grad.placements == leaf.placements == both.placements
            close(leaf.grad, due)
            close(both, due)

    on_ranks(2, 2, work)


def test_the_fused_form_has_the_gradient_of_probabilities_that_every_process_holds(on_ranks):
    probabilities = PROBABILITIES.movedim(0, 1)
    loss, expected = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, probabilities, wrt="target")

    def work(ranks):
        hidden = place(HIDDEN, ranks.mesh, [Shard(0), Replicate()])
        classifier = place(CLASSIFIER, ranks.mesh, [Replicate(), Shard(0)])
        actual, grad = unixent.linear_value_and_grad(hidden, classifier, probabilities, wrt="target")
        close(actual, loss)
        assert grad.placements == (Shard(0), Shard(2))
        close(grad, expected)

    on_ranks(2, 2, work)


def test_the_fused_form_refuses_placements_that_do_not_fit(on_ranks):
    def work(ranks):
        mesh = ranks.mesh
        hidden, classifier = (
            place(HIDDEN, mesh, [Shard(0), Replicate()]),
            place(CLASSIFIER, mesh, [Shard(0)] * 2),
        )
        with pytest.raises(unixent.BackendError, match="expected each mesh axis to shard positions of hidden or"):
            unixent.linear_cross_entropy(hidden, classifier, TARGET)
        with pytest.raises(unixent.BackendError, match="classifier: expected a DTensor, since others"):
            unixent.linear_cross_entropy(hidden, CLASSIFIER, TARGET)
        with pytest.raises(unixent.BackendError, match="hidden: expected a DTensor, since others"):
            unixent.linear_cross_entropy(HIDDEN, classifier, TARGET)

    on_ranks(2, 2, work)
