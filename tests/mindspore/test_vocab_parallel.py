"""What is refused of split losses before any process is asked; the splitting itself is in parallel/."""

from __future__ import annotations

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest

import unixent
from unixent_mindspore import CrossEntropyLoss, grid

X, Y = ms.Tensor(np.ones((2, 3)), ms.float32), ms.Tensor([0, 1], ms.int32)


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("classes", "expected initialised communication for group 'classes'; start the processes with msrun"),
        (3, "expected the name of a MindSpore group, as of create_group; got 3"),
        (None, "model_group: expected a group of 2 processes"),
    ],
)
def test_what_is_no_group_raises_eagerly_and_while_compiling(group, text):
    config = unixent.ParallelConfig(model_parallel=2, model_group=group)
    with pytest.raises(unixent.BackendError, match=text):
        unixent.cross_entropy(X, Y, parallel=config)

    @ms.jit
    def loss(x):
        return unixent.cross_entropy(x, Y, parallel=config)

    with pytest.raises(unixent.BackendError, match=text):
        loss(X)


@pytest.mark.parametrize("mode", ["semi_auto_parallel", "auto_parallel"])
def test_modes_that_split_tensors_by_themselves_are_refused(mode):
    config = unixent.ParallelConfig(model_parallel=2, model_group="classes")
    ms.set_auto_parallel_context(parallel_mode=mode)
    try:
        with pytest.raises(unixent.BackendError, match=f"got parallel_mode='{mode}', in which MindSpore splits"):
            unixent.cross_entropy(X, Y, parallel=config)
    finally:
        ms.reset_auto_parallel_context()


def test_a_config_of_one_process_needs_no_group():
    alone = SimpleNamespace(data_parallel=1, model_parallel=1)
    assert grid(alone) == unixent.ParallelConfig()
    np.testing.assert_allclose(CrossEntropyLoss(alone)(X, Y).asnumpy(), np.log(3), rtol=1e-6)


def test_degrees_without_processes_are_refused():
    with pytest.raises(unixent.BackendError, match="start the processes with msrun"):
        CrossEntropyLoss(SimpleNamespace(data_parallel=1, model_parallel=2))
