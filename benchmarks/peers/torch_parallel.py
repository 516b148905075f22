"""torch's vocabulary-parallel loss: `F.cross_entropy` of a DTensor sharded over the classes, in `loss_parallel`.

The mesh has one rank, this process: what is judged is the formula, not the communication. Probability targets are
sharded as the logits are.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import loss_parallel as in_parallel

from peers.adapting import only, peer


@cache
def _mesh() -> DeviceMesh:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))


def _loss(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    weight: torch.Tensor | None = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    loss, _ = _both(logits, target, None, False, weight, axis, reduction, ignore_index, label_smoothing)
    return loss


def _value_and_grad(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    wrt: str = "logits",
    grad_output: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    axis: int = -1,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, Any]:
    only("wrt", wrt, "logits")
    return _both(logits, target, grad_output, True, weight, axis, reduction, ignore_index, label_smoothing)


def _both(
    logits: torch.Tensor,
    target: torch.Tensor,
    grad_output: torch.Tensor | None,
    differentiate: bool,
    weight: torch.Tensor | None,
    axis: int,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[torch.Tensor, Any]:
    """The backward must run inside the context as well."""
    classes = min(1, logits.ndim - 1)
    leaf = logits.clone().requires_grad_(differentiate)
    sharded = DTensor.from_local(leaf.movedim(axis, classes), _mesh(), [Shard(classes)])
    if target.is_floating_point():
        target = DTensor.from_local(target.movedim(axis, classes), _mesh(), [Shard(classes)])
    with in_parallel():
        loss = F.cross_entropy(
            sharded,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        if not differentiate:
            return loss.full_tensor(), None
        seed = torch.ones_like(loss) if grad_output is None else grad_output.to(loss.dtype)
        if isinstance(loss, DTensor) and not isinstance(seed, DTensor):
            seed = DTensor.from_local(seed, loss.device_mesh, loss.placements)
        loss.backward(seed)
    return loss.full_tensor().detach(), leaf.grad


loss_parallel = peer("torch loss_parallel", _loss, value_and_grad=_value_and_grad)
