"""Split losses over any engine's processes: here threads of this one, so that no MPI is needed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import unixent
import unixent_numpy.linear as linear

RNG = np.random.default_rng(7)
N, C, D = 10, 9, 4
LOGITS, INDEX = RNG.normal(size=(N, C)) * 3, RNG.integers(C, size=N)
HIDDEN, CLASSIFIER, WEIGHT = RNG.normal(size=(N, D)), RNG.normal(size=(C, D)), RNG.random(C)
SHARES = [slice(0, 0), slice(0, 7), slice(7, 9)]


class Meeting:
    """Where the members of a group put what they have, and read what the others have."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=30)
        self.brought: list[object] = [None] * size

    def exchange(self, rank: int, value: object) -> list:
        self.brought[rank] = value
        self.barrier.wait()
        everything = list(self.brought)
        self.barrier.wait()
        return everything


class Member:
    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self.rank, self.size, self.reduced = meeting, rank, meeting.barrier.parties, 0

    def all_reduce(self, values, operation):
        self.reduced += values.nbytes
        found = self._meeting.exchange(self.rank, values.copy())
        assert len({each.shape for each in found}) == 1, "the processes reduce arrays of different shapes"
        return sum(found[1:], found[0]) if operation == "SUM" else np.maximum.reduce(found)

    def all_gather(self, row):
        return self._meeting.exchange(self.rank, row)


def on_each(work):
    """What ``work(share, config)`` returns on each process of a model group."""
    size = len(SHARES)
    meeting = Meeting(size)

    def run(rank):
        config = unixent.ParallelConfig(model_parallel=size, model_group=Member(meeting, rank))
        return work(SHARES[rank], config)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "weight": WEIGHT, "z_loss": 0.1}])
def test_a_group_of_threads_splits_the_classes(options):
    whole, slope = unixent.value_and_grad(LOGITS, INDEX, **options)
    found = on_each(lambda share, config: unixent.value_and_grad(LOGITS[:, share], INDEX, parallel=config, **options))
    for loss, _ in found:
        np.testing.assert_allclose(loss, whole, rtol=1e-13)
    np.testing.assert_allclose(np.concatenate([part for _, part in found], axis=1), slope, rtol=1e-12, atol=1e-15)


def test_unequal_shares_of_a_classifier_go_through_the_same_chunks(monkeypatch):
    # As many positions in a chunk as fit a budget: a small share of the classes alone would take more of them.
    monkeypatch.setattr(linear, "linear_chunk", lambda count, classes, *_: min(count, max(1, 21 // classes)))
    whole, slope = unixent.linear_value_and_grad(HIDDEN, CLASSIFIER, INDEX, wrt="hidden")
    found = on_each(
        lambda share, config: unixent.linear_value_and_grad(
            HIDDEN, CLASSIFIER[share], INDEX, wrt="hidden", parallel=config
        )
    )
    for loss, part in found:
        np.testing.assert_allclose(loss, whole, rtol=1e-13)
        np.testing.assert_allclose(part, slope, rtol=1e-12, atol=1e-15)


def test_processes_that_chunk_differently_all_raise():
    def work(share, config):
        with pytest.raises(unixent.OptionError, match="expected the same options"):
            unixent.linear_cross_entropy(
                HIDDEN, CLASSIFIER[share], INDEX, chunk=3 if share.start else 2, parallel=config
            )
        return True

    assert on_each(work) == [True] * 3


@pytest.mark.parametrize(("smoothing", "mixed", "numbers"), [(0.0, False, 3), (0.2, False, 4), (0.0, True, 7)])
@pytest.mark.parametrize("call", [unixent.cross_entropy, unixent.value_and_grad])
def test_what_goes_over_the_wire(call, smoothing, mixed, numbers):
    logits = LOGITS.astype(np.float32)
    shares = np.full_like(logits, 1 / C)

    def reduced(share, config):
        target = shares[:, share] if mixed else INDEX
        call(logits[:, share], target, label_smoothing=smoothing, parallel=config)
        return config.model_group.reduced

    assert on_each(reduced) == [4 * N * numbers] * len(SHARES)


def test_a_gradient_that_overflows_on_one_process_is_told_there_and_nobody_waits():
    logits = np.zeros((2, C), np.float16)
    logits[1, 7] = 20
    label = np.array([8, 8])

    def work(share, config):
        loss = unixent.CrossEntropyLoss(config, check_for_nan_in_loss_and_grad=True, dtype="float32")
        try:
            loss(logits[:, share], label, normalizer=1e-5)
        except unixent.NonFiniteError as error:
            return str(error)
        return None

    told = "gradient: expected finite values; got a NaN or infinite gradient at position (0,)"
    assert on_each(work) == [None, None, told]
