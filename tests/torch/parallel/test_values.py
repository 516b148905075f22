"""A split loss is the whole one: values and gradients against NumPy on the whole batch, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import unixent

N, C, D = 13, 11, 5
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(size=(N, C)) * 3
INDEX = RNG.integers(C, size=N)
INDEX[[1, 8]] = -100
PROBABILITIES = RNG.random((N, C)) * (RNG.random((N, C)) > 0.3)
MASK = RNG.random(N) * (RNG.random(N) > 0.3)
WEIGHT = RNG.random(C) * (np.arange(C) != 2)
HIDDEN, CLASSIFIER, BIAS = RNG.normal(size=(N, D)), RNG.normal(size=(C, D)), RNG.normal(size=C)
UPSTREAM = RNG.normal(size=N)

GRIDS = [(1, 2), (2, 1), (2, 2), (1, 4)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "weight": WEIGHT},
    {"reduction": "none", "mask": MASK},
    {"reduction": "none", "weight": WEIGHT, "label_smoothing": 0.3},
    {"mask": MASK, "weight": WEIGHT, "normalizer": 7.5},
    {"label_smoothing": 0.2},
    {"label_smoothing": 0.2, "weight": WEIGHT, "mask": MASK},
    {"z_loss": 0.1, "softcap": 4.0},
    {"z_loss": 0.1, "softcap": 4.0, "label_smoothing": 1.0, "weight": WEIGHT},
    {"mask": np.zeros(N)},
    {"mask": np.zeros(N), "on_empty": "nan"},
]


def tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def close(got: torch.Tensor, expected: Any, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(got.detach().double().numpy(), expected, rtol=rtol, atol=1e-13)


def local_options(options: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The options of a rank: its positions of the mask, the whole class weight."""
    arrays = {name: value[rows] if name == "mask" else value for name, value in options.items()}
    return {name: tensor(value) if isinstance(value, np.ndarray) else value for name, value in arrays.items()}


def backward(loss: torch.Tensor, rows: slice) -> None:
    """The gradient of the loss, or of its product with UPSTREAM where each position has its own."""
    loss.backward(tensor(UPSTREAM[rows]) if loss.ndim else None)


def whole(function: Any, *arrays: Any, **options: Any) -> tuple[Any, Any]:
    upstream = UPSTREAM if options.get("reduction") == "none" else None
    return function(*arrays, grad_output=upstream, **options)


@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["indices", "probabilities"])
@pytest.mark.parametrize(("data", "model"), GRIDS)
def test_the_split_loss_is_the_whole_one(on_ranks, data, model, target):
    wrt = ("logits", "target") if target.ndim == 2 else ("logits",)

    def work(ranks):
        rows, columns = ranks.rows(N), ranks.columns(C)
        for options in OPTIONS:
            loss, grads = whole(unixent.value_and_grad, LOGITS, target, wrt=wrt, **options)
            x, own = tensor(LOGITS[rows, columns]).requires_grad_(), tensor(target[rows])
            if target.ndim == 2:
                own = own[:, columns].clone().requires_grad_()
            given = {"parallel": ranks.config, **local_options(options, rows)}
            local_loss = unixent.cross_entropy(x, own, **given)
            close(local_loss, loss[rows] if local_loss.ndim else loss)
            backward(local_loss, rows)
            for got, expected in zip((x.grad, own.grad), grads, strict=False):
                close(got, expected[rows, columns])
            upstream = tensor(UPSTREAM[rows]) if local_loss.ndim else None
            again, local_grads = unixent.value_and_grad(
                x.detach(), own.detach(), wrt=wrt, grad_output=upstream, **given
            )
            assert torch.equal(again, local_loss.detach()) or again.isnan().any()
            for got, expected in zip(local_grads, grads, strict=True):
                close(got, expected[rows, columns])

    on_ranks(data, model, work)


@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["indices", "probabilities"])
@pytest.mark.parametrize(("data", "model"), GRIDS)
def test_the_split_fused_form_is_the_whole_one(on_ranks, data, model, target):
    wrt = ("hidden", "classifier", "bias", *(("target",) if target.ndim == 2 else ()))

    def over_tokens(ranks, gradient):
        # Each process has the gradient of its own positions; the training loop adds them up.
        summed = gradient.clone()
        if ranks.data > 1:
            dist.all_reduce(summed, group=ranks.config.token_group)
        return summed

    def work(ranks):
        rows, columns = ranks.rows(N), ranks.columns(C)
        for options in OPTIONS:
            loss, grads = whole(
                unixent.linear_value_and_grad, HIDDEN, CLASSIFIER, target, bias=BIAS, wrt=wrt, **options
            )
            leaves = [tensor(a).requires_grad_() for a in (HIDDEN[rows], CLASSIFIER[columns], BIAS[columns])]
            own = tensor(target[rows])
            if target.ndim == 2:
                own = own[:, columns].clone().requires_grad_()
            given = {"parallel": ranks.config, "chunk": 3, **local_options(options, rows)}
            local_loss = unixent.linear_cross_entropy(*leaves[:2], own, bias=leaves[2], **given)
            close(local_loss, loss[rows] if local_loss.ndim else loss)
            backward(local_loss, rows)
            upstream = tensor(UPSTREAM[rows]) if local_loss.ndim else None
            plain = [leaf.detach() for leaf in leaves]
            _, both = unixent.linear_value_and_grad(
                *plain[:2], own.detach(), bias=plain[2], wrt=wrt, grad_output=upstream, **given
            )
            for local_grads in ([leaf.grad for leaf in (*leaves, own)], both):
                close(local_grads[0], grads[0][rows])
                close(over_tokens(ranks, local_grads[1]), grads[1][columns])
                close(over_tokens(ranks, local_grads[2]), grads[2][columns])
                if target.ndim == 2:
                    close(local_grads[3], grads[3][rows, columns])

    on_ranks(data, model, work)


def special() -> np.ndarray:
    logits = LOGITS.copy()
    logits[0, 3] = np.nan
    logits[2, 9] = np.inf
    logits[3, :] = -np.inf
    logits[4, :] = -np.inf
    logits[4, INDEX[4]] = 1.5
    logits[5, [0, 10]] = 50.0  # the largest twice, on the first process and on the last
    logits[6, INDEX[6]] = -np.inf
    logits[7, [4, 9]] = 800.0  # exp of what lies between them and the others underflows
    return logits


@pytest.mark.parametrize("target", [INDEX, PROBABILITIES], ids=["indices", "probabilities"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "weight": WEIGHT}], ids=["plain", "smoothed"])
def test_infinities_and_nan_are_those_of_the_whole_loss(on_ranks, target, options):
    logits = special()

    def work(ranks):
        rows, columns = ranks.rows(N), ranks.columns(C)
        loss, grad = unixent.value_and_grad(logits, target, reduction="none", **options)
        own = tensor(target[rows] if target.ndim == 1 else target[rows, columns])
        local_loss, local_grads = unixent.value_and_grad(
            tensor(logits[rows, columns]), own, reduction="none", parallel=ranks.config, **local_options(options, rows)
        )
        close(local_loss, loss[rows])
        close(local_grads, grad[rows, columns])

    on_ranks(2, 2, work)
    on_ranks(1, 4, work)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_halves_are_summed_in_float32(on_ranks, dtype):
    """The statistics go round in float32, so that a split costs no more than the rounding of the result."""
    count, classes = 3000, 16
    logits = torch.zeros(count, classes, dtype=dtype)
    target = torch.arange(count) % classes

    def work(ranks):
        rows, columns = ranks.rows(count), ranks.columns(classes)
        x = logits[rows, columns].clone().requires_grad_()
        loss = unixent.cross_entropy(x, target[rows], reduction="sum", dtype="float32", parallel=ranks.config)
        loss.backward()
        assert x.grad.dtype == dtype
        terms = unixent.loss_terms(x.detach(), target[rows], parallel=ranks.config)
        return loss.item(), terms.denominator.item(), x.grad.float().sum().item()

    for loss, denominator, _ in on_ranks(2, 2, work):
        assert loss == pytest.approx(count * np.log(classes), rel=1e-6)
        assert denominator == count


def test_a_confident_row_keeps_its_accuracy(on_ranks):
    x = torch.tensor([[20.0, 0.0, 0.0, 0.0]])
    exact = np.log1p(3 * np.exp(-20.0))
    one_hot = torch.tensor([[1.0, 0.0, 0.0, 0.0]])

    def work(ranks):
        columns = ranks.columns(4)
        for target in (torch.tensor([0]), one_hot[:, columns]):
            own = x[:, columns].clone().requires_grad_()
            loss = unixent.cross_entropy(own, target, parallel=ranks.config)
            loss.backward()
            assert loss.item() == pytest.approx(exact, rel=1e-6)
            if ranks.rank == 0:
                assert own.grad[0, 0].item() == pytest.approx(-exact, rel=1e-6)

    on_ranks(1, 2, work)


def test_terms_are_sums_over_all_processes(on_ranks):
    numerator, denominator = unixent.loss_terms(LOGITS, INDEX, mask=MASK, weight=WEIGHT)

    def work(ranks):
        rows, columns = ranks.rows(N), ranks.columns(C)
        options = local_options({"mask": MASK, "weight": WEIGHT}, rows)
        own = tensor(LOGITS[rows, columns])
        terms = unixent.loss_terms(own, tensor(INDEX[rows]), parallel=ranks.config, **options)
        close(terms.numerator, numerator)
        close(terms.denominator, denominator)

    on_ranks(2, 2, work)


@pytest.mark.parametrize("axis", [0, 1])
def test_classes_may_lie_along_any_axis(on_ranks, axis):
    source = np.random.default_rng(6)
    logits, index = source.normal(size=(4, 7, 5, 3)), source.integers(7, size=(4, 5, 3))
    logits = np.moveaxis(logits, 1, axis)

    def work(ranks):
        columns = ranks.columns(7)
        cut = (slice(None),) * axis + (columns,)
        x = tensor(logits)[cut].requires_grad_()
        loss, expected = unixent.value_and_grad(logits, index, axis=axis)
        local_loss = unixent.cross_entropy(x, tensor(index), axis=axis, parallel=ranks.config)
        close(local_loss, loss)
        local_loss.backward()
        close(x.grad, expected[cut])

    on_ranks(1, 2, work)


def test_more_rows_than_a_block_give_the_whole_loss(on_ranks):
    """More rows than a block holds, and chunks of the fused form that unequal shares would cut unequally."""
    count, classes = 3, 1 << 20
    source = np.random.default_rng(7)
    logits = source.normal(size=(count, classes)).astype(np.float32)
    index = source.integers(classes, size=count)
    loss, grad = unixent.value_and_grad(logits.astype(np.float64), index)

    def work(ranks):
        columns = ranks.columns(classes)
        local_loss, local_grads = unixent.value_and_grad(
            tensor(logits[:, columns]), tensor(index), parallel=ranks.config
        )
        close(local_loss, loss, 1e-6)
        np.testing.assert_allclose(local_grads.numpy(), grad[:, columns], rtol=1e-5, atol=1e-12)
        hidden, classifier = torch.ones(200, 1), torch.linspace(-1, 1, 100_000).unsqueeze(1)
        target = torch.arange(200)
        own = unixent.linear_cross_entropy(hidden, classifier[ranks.columns(100_000)], target, parallel=ranks.config)
        close(own, unixent.linear_cross_entropy(hidden, classifier, target).item(), 1e-6)

    on_ranks(1, 2, work)
