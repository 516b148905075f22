"""Losses of sparse targets over ranks, by process groups, against those of the whole rows."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import unixent

N, C, D, K = 7, 11, 3, 3
GENERATOR = torch.Generator().manual_seed(9)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


LOGITS, DIRECTION, HIDDEN, CLASSIFIER, BIAS = 3 * drawn(N, C), drawn(N, C), drawn(N, D), drawn(C, D), drawn(C)
IDS, PROBS = torch.randint(8, (N, K), generator=GENERATOR), torch.rand(N, K, generator=GENERATOR).double() / 4
IDS[:, 2] = -100
MASK = torch.tensor([1, 1, 1, 1, 1, 1, 0.0])


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tail", ["drop", "renormalize", "bucket"])
def test_split_losses_of_sparse_targets_are_those_of_the_whole_rows(on_ranks, tail):
    """Values, gradients and, of logits, second derivatives."""
    options = {"label_smoothing": 0.2, "z_loss": 0.1, "weight": BIAS.abs(), "softcap": 4.0}

    def losses(x, q, rows, **more):
        target = unixent.TopK(IDS[rows], probs=q, tail=tail)
        return unixent.cross_entropy(x, target, mask=MASK[rows], **options, **more)

    def derivatives(x, q, rows, along, **more):
        x, q = x.clone().requires_grad_(), q.clone().requires_grad_()
        loss = losses(x, q, rows, **more)
        grads = torch.autograd.grad(loss, (x, q), create_graph=True)
        return loss, *grads, torch.autograd.grad((grads[0] * along).sum(), x)[0]

    expected = derivatives(LOGITS, PROBS, slice(None), DIRECTION)
    leaves = [each.clone().requires_grad_() for each in (HIDDEN, CLASSIFIER, BIAS)]
    target = unixent.TopK(IDS, probs=PROBS, tail=tail)
    linear = unixent.linear_cross_entropy(*leaves[:2], target, bias=leaves[2], mask=MASK, chunk=2, **options)
    linear.backward()

    def work(ranks):
        rows, columns = ranks.rows(N), ranks.columns(C)
        config, part = ranks.config, (rows, columns)
        loss, grad, of_probs, second = derivatives(LOGITS[part], PROBS[rows], rows, DIRECTION[part], parallel=config)
        close(loss, expected[0])
        close(grad, expected[1][part])
        close(of_probs, expected[2][rows])
        close(second, expected[3][part])
        _, both = unixent.value_and_grad(
            LOGITS[part],
            unixent.TopK(IDS[rows], probs=PROBS[rows], tail=tail),
            mask=MASK[rows],
            parallel=config,
            **options,
        )
        close(both, expected[1][part])
        own = [each.clone().requires_grad_() for each in (HIDDEN[rows], CLASSIFIER[columns], BIAS[columns])]
        target = unixent.TopK(IDS[rows], probs=PROBS[rows], tail=tail)
        given = {"mask": MASK[rows], "chunk": 2, "parallel": config, **options}
        loss = unixent.linear_cross_entropy(*own[:2], target, bias=own[2], **given)
        close(loss, linear.detach())
        loss.backward()
        close(own[0].grad, leaves[0].grad[rows])
        dist.all_reduce(own[1].grad, group=config.token_group)
        close(own[1].grad, leaves[1].grad[columns])

    on_ranks(2, 2, work)
