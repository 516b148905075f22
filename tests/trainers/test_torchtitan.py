"""torchtitan: its loss with ours as its function, of plain tensors, of DTensors and of a mesh's plain shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from originals import parameters
from processes import run_two

from unixent_torch.trainers import torchtitan

original = pytest.importorskip(
    "torchtitan.components.loss", reason="needs torchtitan: pip install --no-deps torchtitan spmd_types tyro"
)


def test_the_signature_is_that_of_torchtitan():
    assert parameters(torchtitan.cross_entropy_loss) == parameters(original.cross_entropy_loss)


def test_the_sum_is_that_of_torchtitan(rows, assert_same):
    logits, labels = rows
    labels[0, 1] = -100
    # torchtitan computes in float32
    assert_same(
        lambda x: torchtitan.cross_entropy_loss(x, labels),
        lambda x: original.cross_entropy_loss(x, labels),
        logits.float(),
        rtol=1e-6,
    )


def test_the_loss_object_calls_ours_after_patch(rows, patched):
    logits, labels = rows
    count = torch.tensor(15.0)
    expected, _ = original.CrossEntropyLoss(original.CrossEntropyLoss.Config())(logits.float(), labels, count)
    patched("torchtitan")
    loss = original.CrossEntropyLoss(original.CrossEntropyLoss.Config())
    assert loss.fn is torchtitan.cross_entropy_loss
    actual, metrics = loss(logits.float(), labels, count)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    assert metrics == {}


SCRIPT = """
from torch.distributed.tensor import DTensor, Replicate, Shard
from torchtitan.components import loss as original
from torchtitan.distributed import spmd_types, utils
from unixent_torch.trainers.torchtitan import cross_entropy_loss

mesh = dist.init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
torch.manual_seed(0)
logits, labels = 4 * torch.randn(3, 5, 7), torch.randint(7, (3, 5))
labels[0, 1] = -100
leaf = logits.clone().requires_grad_()
expected = torch.nn.functional.cross_entropy(leaf.flatten(0, 1), labels.flatten(), reduction="sum")
expected.backward()
local = logits[..., 4 * rank : 4 * rank + 4].contiguous()  # 4 and 3 classes
part = leaf.grad[..., 4 * rank : 4 * rank + 4]

def check(function, *arguments, grad=lambda tensor: tensor.grad, **options):
    tensor = arguments[0].detach().clone().requires_grad_()
    loss = function(tensor, *arguments[1:], **options)
    loss.backward()
    value = loss.full_tensor() if isinstance(loss, DTensor) else loss
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(grad(tensor), part, rtol=1e-4, atol=1e-6)
    return loss

def of_shard(tensor):
    assert tensor.grad.placements == (Shard(2),)
    return tensor.grad.to_local()

sharded = DTensor.from_local(local, mesh, [Shard(2)], shape=logits.shape, stride=logits.stride())
replicated = DTensor.from_local(labels, mesh, [Replicate()])
utils.set_spmd_backend("partial_dtensor")
for function in (original.cross_entropy_loss, cross_entropy_loss):
    assert not isinstance(check(function, sharded, labels, grad=of_shard), DTensor)
    assert isinstance(check(function, sharded, replicated, grad=of_shard), DTensor)
utils.set_spmd_backend("spmd_types")
with spmd_types.set_current_spmd_mesh(mesh):
    for function in (original.cross_entropy_loss, cross_entropy_loss):
        check(function, local, labels, global_vocab_size=7)
    beyond = labels.clone()
    beyond[0, 0] = 7
    alone = torch.where(torch.arange(15).reshape(3, 5) == 0, beyond, -100)
    assert original.cross_entropy_loss(local, alone, global_vocab_size=7) == 0  # as if it were ignored
    try:
        cross_entropy_loss(local, alone, global_vocab_size=7)
    except IndexError as error:
        assert "7 at position (0, 0)" in str(error), error
    else:
        raise AssertionError
"""


def test_classes_over_two_processes_have_the_loss_of_the_whole_vocabulary(tmp_path: Path) -> None:
    run_two(tmp_path, SCRIPT)
