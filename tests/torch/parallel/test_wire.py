"""What goes over the wire: numbers for each position, in two rounds, and nothing on the way back."""

from __future__ import annotations

import threading
from collections import defaultdict
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives

import unixent

N, C = 32, 24
COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "all_to_all", "all_to_all_single",
    "broadcast", "reduce", "reduce_scatter", "reduce_scatter_tensor", "gather", "scatter", "send", "recv",
)  # fmt: skip


@pytest.fixture
def sent(monkeypatch):
    """``sent[rank]``: name, dtype and number of elements of every collective of a rank, by its thread."""
    by_thread = defaultdict(list)

    def record(module, name):
        original = getattr(module, name)

        def recorded(*args, **kwargs):
            tensors = [each for arg in args for each in (arg if isinstance(arg, list) else [arg])]
            tensors = [each for each in tensors if isinstance(each, torch.Tensor)]
            size = max((each.numel() for each in tensors), default=0)
            dtype = tensors[0].dtype if tensors else None
            by_thread[threading.get_ident()].append((name, dtype, size))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, recorded)

    for name in COLLECTIVES:
        record(dist, name)
    for name in ("all_reduce", "all_gather_tensor", "reduce_scatter_tensor"):
        record(_functional_collectives, name)
    return by_thread


@contextmanager
def recorded(sent):
    messages = sent[threading.get_ident()]
    messages.clear()
    yield messages


@pytest.mark.parametrize(
    ("target_kind", "options", "numbers"),
    [
        ("indices", {}, [1, 2]),
        ("indices", {"weight": torch.ones(C), "z_loss": 0.1, "softcap": 5.0}, [1, 2]),
        ("indices", {"label_smoothing": 0.1}, [1, 3]),
        ("probabilities", {}, [1, 5]),
        ("probabilities", {"label_smoothing": 0.1}, [1, 5]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_two_reductions_forward_and_nothing_backward(on_ranks, sent, target_kind, options, numbers, dtype):
    index = torch.arange(N) % C

    def work(ranks):
        columns = ranks.columns(C)
        x = torch.randn(N, columns.stop - columns.start).to(dtype).requires_grad_()
        target = index if target_kind == "indices" else torch.rand_like(x)
        with recorded(sent) as messages:
            loss = unixent.cross_entropy(x, target, parallel=ranks.config, **options)
            # First the processes agree on the call, by a few integers each.
            assert [each[:2] for each in messages[:2]] == [("all_gather", torch.int64)] * 2
            assert all(size <= 4 for _, _, size in messages[:2])
            assert messages[2:] == [("all_reduce", torch.float32, count * N) for count in numbers]
        with recorded(sent) as messages:
            loss.backward()
            assert messages == []

    on_ranks(1, 2, work)


def test_a_mean_over_the_token_group_adds_two_numbers(on_ranks, sent):
    def work(ranks):
        x = torch.randn(N, C, requires_grad=True)
        with recorded(sent) as messages:
            loss = unixent.cross_entropy(x, torch.arange(N) % C, parallel=ranks.config)
            assert messages[2:] == [("all_reduce", torch.float32, 1)] * 2
        with recorded(sent) as messages:
            loss.backward()
            assert messages == []

    on_ranks(2, 1, work)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_fused_form_sums_the_hidden_gradient_in_the_forward_pass(on_ranks, sent, reduction):
    width, chunk = 7, 20

    def work(ranks):
        columns = ranks.columns(C)
        hidden = torch.randn(N, width, requires_grad=True)
        classifier = torch.randn(columns.stop - columns.start, width, requires_grad=True)
        with recorded(sent) as messages:
            loss = unixent.linear_cross_entropy(
                hidden, classifier, torch.arange(N) % C, chunk=chunk, reduction=reduction, parallel=ranks.config
            )
            reduced = [size for name, _, size in messages if name == "all_reduce"]
            assert reduced == [chunk, 2 * chunk, N - chunk, 2 * (N - chunk), N * width]
        with recorded(sent) as messages:
            loss.sum().backward()
            assert messages == []

    on_ranks(1, 2, work)


def test_a_dtensor_is_never_gathered(on_ranks, sent):
    from torch.distributed.tensor import Shard, distribute_tensor

    logits, index = torch.randn(N, C), torch.arange(N) % C

    def work(ranks):
        x = distribute_tensor(logits.clone(), ranks.mesh, [Shard(0), Shard(1)]).requires_grad_()
        with recorded(sent) as messages:
            loss = unixent.cross_entropy(x, index)
            # One mesh axis shares the positions: its processes add up the denominator and the loss.
            assert messages == [("all_reduce", torch.float32, size) for size in (1, N // 2, N, 1)]
        with recorded(sent) as messages:
            loss.backward()
            assert messages == []

    on_ranks(2, 2, work)
