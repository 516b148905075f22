"""Statistics of positions over ranks, by process groups and as DTensors, against those of the whole rows."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

import unixent
from unixent import PositionStats

N, C, D, K = 7, 11, 3, 3
GENERATOR = torch.Generator().manual_seed(9)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


LOGITS, UPSTREAM, DIRECTION = 3 * drawn(N, C), drawn(N), drawn(N, C)
HIDDEN, CLASSIFIER, BIAS = drawn(N, D), drawn(C, D), drawn(C)
INDEX, SELECTED = torch.randint(8, (N,), generator=GENERATOR), torch.randint(8, (N, K), generator=GENERATOR)
INDEX[5], SELECTED[:, 2] = -100, -100
MASK = torch.tensor([1, 1, 1, 1, 1, 1, 0.0])
GRADED = ("loss", "log_prob", "entropy", "logsumexp", "selected_log_prob")
OPTIONS = {
    "plain": {},
    "all": {"scale": 0.5, "softcap": 3.0, "temperature": 0.7, "label_smoothing": 0.1, "z_loss": 0.1},
    "padded": {"num_classes": 8},
}
GRIDS = [(1, 2), (2, 2), (1, 4), (2, 1)]


def special() -> torch.Tensor:
    logits = LOGITS.clone()
    logits[0, 0] = logits[0, 7] = logits[0, 3] = 9.0  # the largest on several ranks
    logits[1, 1:] = -torch.inf
    logits[2, 0], logits[3, 1], logits[4, 0] = torch.nan, torch.inf, -torch.inf
    return logits


def close(got: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(got, expected, rtol=rtol, atol=1e-12, equal_nan=True)


def same(got: PositionStats, expected: PositionStats, rows: slice) -> None:
    for value, whole in zip(got, expected, strict=True):
        assert (value is None) == (whole is None)
        if whole is not None:
            close(value.detach(), whole[rows].detach())


def backward(stats: PositionStats, rows: slice) -> None:
    terms = [getattr(stats, name) for name in GRADED]
    weights = [UPSTREAM[rows] if each.ndim == 1 else UPSTREAM[rows, None] for each in terms]
    sum((each * weight).sum() for each, weight in zip(terms, weights, strict=True)).backward()


def of_rows(rows: slice) -> dict[str, torch.Tensor]:
    return {"target": INDEX[rows], "selected": SELECTED[rows], "mask": MASK[rows]}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("data", "model"), GRIDS)
def test_split_statistics_are_those_of_the_whole_rows(on_ranks, data, model, name):
    options = {**OPTIONS[name], "outputs": PositionStats._fields, "k": 4}
    logits = special()
    if name == "padded":
        logits[:, 8:] = torch.nan
    whole = logits.clone().requires_grad_()
    expected = unixent.position_stats(whole, **of_rows(slice(None)), **options)
    backward(expected, slice(None))
    upstream = PositionStats(**dict.fromkeys(GRADED[:4], UPSTREAM), selected_log_prob=UPSTREAM[:, None].expand(N, K))

    def work(ranks):
        rows, columns = ranks.rows(N), ranks.columns(C)
        x, given = logits[rows, columns].clone().requires_grad_(), {"parallel": ranks.config, **options}
        stats = unixent.position_stats(x, **of_rows(rows), **given)
        same(stats, expected, rows)
        backward(stats, rows)
        close(x.grad, whole.grad[rows, columns])
        above = PositionStats(*[None if each is None else each[rows] for each in upstream])
        stats, grad = unixent.position_stats_and_grad(x.detach(), **of_rows(rows), grad_output=above, **given)
        same(stats, expected, rows)
        close(grad, whole.grad[rows, columns])

    on_ranks(data, model, work)


@pytest.mark.parametrize(("data", "model"), [(2, 2), (1, 4)])
def test_the_split_linear_form_has_whole_gradients(on_ranks, data, model):
    options = {**OPTIONS["all"], "outputs": PositionStats._fields, "k": 4, "chunk": 2}
    leaves = [each.clone().requires_grad_() for each in (HIDDEN, CLASSIFIER, BIAS)]
    expected = unixent.linear_position_stats(*leaves[:2], bias=leaves[2], **of_rows(slice(None)), **options)
    backward(expected, slice(None))

    def work(ranks):
        rows, columns = ranks.rows(N), ranks.columns(C)
        own = [each.clone().requires_grad_() for each in (HIDDEN[rows], CLASSIFIER[columns], BIAS[columns])]
        given = {**of_rows(rows), "parallel": ranks.config, **options}
        stats = unixent.linear_position_stats(*own[:2], bias=own[2], **given)
        same(stats, expected, rows)
        backward(stats, rows)
        above = dict.fromkeys(GRADED[:4], UPSTREAM[rows])
        above["selected_log_prob"] = UPSTREAM[rows, None].expand(-1, K)
        plain = [each.detach() for each in own]
        _, grads = unixent.linear_position_stats_and_grad(
            *plain[:2], bias=plain[2], grad_output=PositionStats(**above), **given
        )
        for each in ([leaf.grad for leaf in own], grads):
            close(each[0], leaves[0].grad[rows])
            for local_grad, leaf in zip(each[1:], leaves[1:], strict=True):
                summed = local_grad.clone()
                if data > 1:
                    dist.all_reduce(summed, group=ranks.config.token_group)
                close(summed, leaf.grad[columns])

    on_ranks(data, model, work)


def second(x, along, **given):
    stats = unixent.position_stats(x, **given)
    values = [getattr(stats, name) for name in given["outputs"]]
    (grad,) = torch.autograd.grad(sum(each.square().sum() for each in values), x, create_graph=True)
    return torch.autograd.grad((grad * along).sum(), x)[0]


@pytest.mark.parametrize("output", [*GRADED, GRADED])
def test_second_derivatives_are_those_of_the_whole_rows(on_ranks, output):
    outputs = (output,) if isinstance(output, str) else output
    options = {"softcap": 4.0, "temperature": 0.7, "z_loss": 0.1, "outputs": outputs}

    def arguments(rows):
        given = of_rows(rows)
        return given if "selected_log_prob" in outputs else {"target": given["target"], "mask": given["mask"]}

    expected = second(LOGITS.clone().requires_grad_(), DIRECTION, **arguments(slice(None)), **options)

    def work(ranks):
        rows, columns = ranks.rows(N), ranks.columns(C)
        x = LOGITS[rows, columns].clone().requires_grad_()
        got = second(x, DIRECTION[rows, columns], parallel=ranks.config, **arguments(rows), **options)
        close(got, expected[rows, columns])

    on_ranks(2, 2, work)


def test_the_linear_form_refuses_second_derivatives(on_ranks):
    def work(ranks):
        h = HIDDEN.clone().requires_grad_()
        stats = unixent.linear_position_stats(h, CLASSIFIER[ranks.columns(C)], outputs="entropy", parallel=ranks.config)
        (grad,) = torch.autograd.grad(stats.entropy.sum(), h, create_graph=True)
        with pytest.raises(unixent.BackendError, match="has a plain backward pass"):
            grad.sum().backward()

    on_ranks(1, 2, work)


def test_the_backward_pass_of_logits_communicates_nothing(on_ranks):
    """One rank alone takes its gradient: were the others needed, it would wait for them."""
    whole = LOGITS.clone().requires_grad_()
    unixent.position_stats(whole, INDEX, outputs=("log_prob", "entropy")).entropy.sum().backward()

    def work(ranks):
        x = LOGITS[:, ranks.columns(C)].clone().requires_grad_()
        stats = unixent.position_stats(x, INDEX, outputs=("log_prob", "entropy"), parallel=ranks.config)
        if ranks.rank == 1:
            stats.entropy.sum().backward()
            close(x.grad, whole.grad[:, ranks.columns(C)])

    on_ranks(1, 2, work)


def test_small_numbers_keep_their_accuracy(on_ranks):
    x, index, outputs = torch.tensor([[20.0, 0, 0, 0], [0, 0, 0, 20]]), torch.tensor([0, 3]), ("log_prob", "entropy")
    expected = unixent.position_stats(x.double(), index, outputs=outputs)

    def work(ranks):
        stats = unixent.position_stats(x[:, ranks.columns(4)], index, outputs=outputs, parallel=ranks.config)
        for name in outputs:
            torch.testing.assert_close(getattr(stats, name).double(), getattr(expected, name), rtol=1e-6, atol=0)

    on_ranks(1, 2, work)


def test_many_rows_are_worked_block_by_block(on_ranks, monkeypatch):
    monkeypatch.setattr("unixent_torch.kernel.blocks._HOST_ELEMENTS", 6)
    test_split_statistics_are_those_of_the_whole_rows(on_ranks, 1, 2, "all")


@pytest.mark.parametrize(
    "changes",
    [{"outputs": ("entropy", "selected_log_prob")}, {"selected": SELECTED[:, :2]}, {"selected": SELECTED.clamp(0)}],
    ids=["outputs", "shape", "values"],
)
def test_ranks_that_ask_for_other_statistics_all_raise(on_ranks, changes):
    def work(ranks):
        x, given = LOGITS[:, ranks.columns(C)], {"selected": SELECTED, "outputs": "selected_log_prob"}
        given |= changes if ranks.rank else {}
        with pytest.raises(unixent.UnixentError, match=r"the same options|the same positions, targets and mask"):
            unixent.position_stats(x, INDEX, parallel=ranks.config, **given)
        unixent.position_stats(x, INDEX, parallel=ranks.config)  # and stay in step

    on_ranks(1, 2, work)


def test_dtensors_have_statistics_that_lie_as_their_positions_do(on_ranks):
    """Classes, positions, both and neither, on both mesh axes."""
    options = {**OPTIONS["padded"], "outputs": PositionStats._fields, "k": 4, "weight": BIAS[:8].abs()}
    whole = LOGITS.clone().requires_grad_()
    expected = unixent.position_stats(whole, **of_rows(slice(None)), **options)
    backward(expected, slice(None))

    def work(ranks):
        for placements in itertools.product([Replicate(), Shard(0), Shard(1)], repeat=2):
            of_positions = tuple(Replicate() if each == Shard(1) else each for each in placements)
            x = ranks.place(LOGITS, placements).requires_grad_()
            stats = unixent.position_stats(x, **of_rows(slice(None)), **options)
            for value, due in zip(stats, expected, strict=True):
                assert isinstance(value, DTensor)
                assert value.placements == of_positions
                assert value.shape == due.shape
                close(value.detach().to_local(), ranks.local(due, of_positions))
            terms = [getattr(stats, name) for name in GRADED]
            above = [UPSTREAM if each.ndim == 1 else UPSTREAM[:, None].expand(N, K).contiguous() for each in terms]
            torch.autograd.backward(terms, [ranks.place(each, of_positions) for each in above])
            assert x.grad.placements == placements
            close(x.grad.to_local(), ranks.local(whole.grad, placements))
            given = PositionStats(**dict(zip(GRADED, above, strict=True)))
            _, grad = unixent.position_stats_and_grad(x.detach(), **of_rows(slice(None)), grad_output=given, **options)
            close(grad.to_local(), ranks.local(whole.grad, placements))

    on_ranks(2, 2, work)


@pytest.mark.parametrize(
    ("by_hidden", "by_classes"),
    [([Shard(0), Replicate()], [Replicate(), Shard(0)]), ([Replicate(), Replicate()], [Shard(0), Shard(0)])],
)
def test_the_linear_form_of_dtensors_has_whole_gradients(on_ranks, by_hidden, by_classes):
    options = {"outputs": GRADED, "selected": SELECTED}
    leaves = [each.clone().requires_grad_() for each in (HIDDEN, CLASSIFIER, BIAS)]
    expected = unixent.linear_position_stats(*leaves[:2], INDEX, bias=leaves[2], **options)
    torch.autograd.backward([getattr(expected, name).sum() for name in GRADED])

    def work(ranks):
        placed = zip((HIDDEN, CLASSIFIER, BIAS), (by_hidden, by_classes, by_classes), strict=True)
        own = [ranks.place(each, placements).requires_grad_() for each, placements in placed]
        stats = unixent.linear_position_stats(*own[:2], INDEX, bias=own[2], **options)
        terms = [getattr(stats, name) for name in GRADED]
        ones = [ranks.place(torch.ones(each.shape, dtype=each.dtype), each.placements) for each in terms]
        torch.autograd.backward(terms, ones)
        plain = [each.detach() for each in own]
        _, grads = unixent.linear_position_stats_and_grad(*plain[:2], INDEX, bias=plain[2], **options)
        for leaf, both, due in zip(own, grads, leaves, strict=True):
            assert leaf.grad.placements == leaf.placements == both.placements
            close(leaf.grad.to_local(), ranks.local(due.grad, leaf.placements))
            close(both.to_local(), ranks.local(due.grad, leaf.placements))

    on_ranks(2, 2, work)
