"""Ranks that disagree all raise, none waits; a NaN on one is a NaN on all; what is not served says so."""

from __future__ import annotations

import re

import pytest
import torch

import unixent
import unixent_torch

N, C = 6, 8
LOGITS = torch.linspace(-3, 3, N * C).view(N, C)
INDEX = torch.arange(N) % C


def raised(call, *arguments, **options):
    with pytest.raises(unixent.UnixentError) as caught:
        call(*arguments, **options)
    return caught.value


def faulty(on_ranks, due, text, own, data=2, model=2):
    """The last rank calls otherwise than the others: all raise, it or all of them ``due``; then the groups still work.

    ``own(ranks, last)``: the arguments and options of a rank.
    """

    def work(ranks):
        arguments, options = own(ranks, ranks.rank == data * model - 1)
        error = raised(unixent.cross_entropy, *arguments, parallel=ranks.config, **options)
        plain = local(ranks)
        assert unixent.cross_entropy(*plain, parallel=ranks.config).isfinite()
        return error

    errors = on_ranks(data, model, work)
    assert {type(error) for error in errors} <= {due, unixent.BackendError}, errors
    at_fault = [error for error in errors if isinstance(error, due) and re.search(text, str(error))]
    others = [error for error in errors if re.search("process . of the .* group refused its arguments", str(error))]
    assert at_fault, errors
    assert len(at_fault) + len(others) == data * model


def local(ranks):
    return LOGITS[ranks.rows(N), ranks.columns(C)], INDEX[ranks.rows(N)]


def test_different_options_raise_on_all_ranks(on_ranks):
    def own(ranks, last):
        return local(ranks), {"label_smoothing": 0.1 if last else 0.0}

    faulty(on_ranks, unixent.OptionError, "expected the same options on every process", own)


def test_different_dtypes_raise_on_all_ranks(on_ranks):
    def own(ranks, last):
        logits, target = local(ranks)
        return (logits.double() if last else logits, target), {}

    faulty(on_ranks, unixent.OptionError, "expected the same options on every process", own)


def test_different_positions_raise_on_all_ranks(on_ranks):
    def own(ranks, last):
        logits, target = local(ranks)
        return (logits[1:], target[1:]) if last else (logits, target), {}

    faulty(
        on_ranks,
        unixent.ShapeError,
        "expected the same positions, targets and mask on every process of the",
        own,
    )


def test_different_vocabularies_raise_on_all_ranks(on_ranks):
    def own(ranks, last):
        logits, target = local(ranks)
        return (logits[:, 1:] if last else logits, target), {}

    faulty(on_ranks, unixent.ShapeError, "number of classes on every process of the token group", own)


def test_a_label_out_of_range_raises_on_all_ranks(on_ranks):
    def own(ranks, last):
        logits, target = local(ranks)
        return (logits, target + C if ranks.rank >= 2 else target), {}

    faulty(on_ranks, unixent.TargetRangeError, rf"\[0, {C}\)", own)


def test_a_weight_of_the_local_classes_is_refused(on_ranks):
    def own(ranks, last):
        logits, target = local(ranks)
        return (logits, target), {"weight": torch.ones(logits.shape[1])}

    faulty(on_ranks, unixent.ShapeError, rf"weight: expected a floating array of shape \({C},\)", own)


@pytest.mark.parametrize("name", ["chunk", "width"])
def test_different_fused_forms_raise_on_all_ranks(on_ranks, name):
    def work(ranks):
        last = ranks.rank == 3
        width = 3 if name == "width" and last else 2
        rows, columns = ranks.rows(N), ranks.columns(C)
        hidden, classifier = torch.ones(rows.stop - rows.start, width), torch.ones(columns.stop - columns.start, width)
        return raised(
            unixent.linear_cross_entropy,
            hidden,
            classifier,
            INDEX[rows],
            chunk=2 if name == "chunk" and last else 3,
            parallel=ranks.config,
        )

    errors = on_ranks(2, 2, work)
    assert any("expected the same options" in str(error) for error in errors)


def test_a_group_of_another_size_is_refused(on_ranks):
    def work(ranks):
        config = unixent.ParallelConfig(model_parallel=4, model_group=ranks.config.model_group)
        error = raised(unixent.cross_entropy, *local(ranks), parallel=config)
        assert "model_group: expected a group of 4 processes" in str(error)

    on_ranks(1, 2, work)


@pytest.mark.parametrize("target_kind", ["indices", "probabilities"])
def test_nan_on_one_is_nan_on_all(on_ranks, target_kind):
    def work(ranks):
        logits, target = local(ranks)
        logits = logits.clone()
        if ranks.rank == 3:
            logits[0, 1] = torch.nan
        if target_kind == "probabilities":
            target = torch.zeros_like(logits)  # not even where no class has a weight
        loss, grad = unixent.value_and_grad(logits, target, parallel=ranks.config)
        assert loss.isnan()
        rows = grad.isnan().any(1)
        assert rows.tolist() == [ranks.rank >= 2 and row == 0 for row in range(len(rows))]

    on_ranks(2, 2, work)


def test_an_inactive_position_contributes_nothing_on_any_rank(on_ranks):
    """Whatever its logits hold, on whichever process: loss and gradient are those without it."""

    def work(ranks):
        logits, target = local(ranks)
        logits, target = logits.clone(), target.clone()
        if ranks.rank >= 2:
            target[0] = -100
        if ranks.rank == 3:
            logits[0] = torch.nan
        x = logits.requires_grad_()
        loss = unixent.cross_entropy(x, target, parallel=ranks.config)
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()
        return loss.item()

    kept = torch.ones(N, dtype=torch.bool)
    kept[4] = False  # the first of the second half of the rows: 4 and 2 of them
    losses = on_ranks(2, 2, work)
    assert losses == [pytest.approx(unixent.cross_entropy(LOGITS[kept], INDEX[kept]).item(), rel=1e-6)] * 4


def test_an_empty_mean_is_one_over_all_ranks(on_ranks):
    def work(ranks):
        logits, target = local(ranks)
        ignored = torch.full_like(target, -100)
        with pytest.raises(unixent.EmptyMeanError):
            unixent.cross_entropy(logits, ignored, on_empty="raise", parallel=ranks.config)
        # Empty here, and not over all processes: no error.
        own = ignored if ranks.rank < 2 else target
        assert unixent.cross_entropy(logits, own, on_empty="raise", parallel=ranks.config) > 0

    on_ranks(2, 2, work)


def test_modules_give_the_whole_loss(on_ranks):
    weight = torch.linspace(0.5, 1.5, C)
    hidden, classifier = torch.randn(N, 3), torch.randn(C, 3)
    expected = unixent.cross_entropy(LOGITS, INDEX, weight=weight, label_smoothing=0.1)
    fused = unixent.linear_cross_entropy(hidden, classifier, INDEX)

    def work(ranks):
        loss = unixent_torch.CrossEntropyLoss(weight, label_smoothing=0.1, parallel_config=ranks.config)
        assert repr(loss) == f"CrossEntropyLoss(weight=({C},), label_smoothing=0.1, over 4 processes)"
        torch.testing.assert_close(loss(*local(ranks)), expected)
        rows, columns = ranks.rows(N), ranks.columns(C)
        linear = unixent_torch.LinearCrossEntropyLoss(3, columns.stop - columns.start, parallel_config=ranks.config)
        with torch.no_grad():
            linear.linear.weight.copy_(classifier[columns])
        torch.testing.assert_close(linear(hidden[rows], INDEX[rows]), fused)

    on_ranks(2, 2, work)
