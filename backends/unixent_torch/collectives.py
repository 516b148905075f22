"""torch's process groups: what goes over them, and how derivatives pass a sum over processes."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from unixent.protocol import Sharding
from unixent_torch import compat

# Process groups that are reduced over one after the other: several where axes of a mesh share what is split.
Groups: TypeAlias = "tuple[Any, ...]"


def is_dtensor(array: object) -> bool:
    """Whether this is a DTensor; a program without any need not import what they are."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(array, module.DTensor)


class LocalShard(NamedTuple):
    """Where the tensors of this process lie in the whole.

    Attributes:
        model_groups: the groups that share the classes.
        token_groups: the groups that share the positions.
        vocab_start: index of the first class of this process.
        num_classes: C of the whole vocabulary.
        max_local_classes: the most classes that any process of the model groups holds.
    """

    model_groups: Groups
    token_groups: Groups
    vocab_start: int
    num_classes: int
    max_local_classes: int

    @classmethod
    def of(cls, sharding: Sharding) -> LocalShard:
        model_groups = _shared(sharding.model_group)
        rank = dist.get_rank(model_groups[0]) if model_groups else 0
        return cls(
            model_groups,
            _shared(sharding.token_group),
            sharding.vocab_start(rank),
            sharding.num_classes,
            max(sharding.classes_per_rank),
        )


def _shared(group: Any) -> Groups:
    """The group, unless it is that of one process."""
    return () if group is None or dist.get_world_size(group) == 1 else (group,)


def all_reduce(values: Tensor, groups: Groups, operation: str) -> Tensor:
    """``values``, which may be overwritten, reduced with "sum" or "max" over groups."""
    for group in groups:
        if torch.compiler.is_compiling():
            values = compat.traced_all_reduce(values, operation, group)
        else:
            dist.all_reduce(values, dist.ReduceOp.MAX if operation == "max" else dist.ReduceOp.SUM, group=group)
    return values


def all_gather(row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
    """The rows of all processes of a group. A compiled program is one for all: there every row is this one."""
    size = dist.get_world_size(group)
    if torch.compiler.is_compiling():
        return [row] * size
    local = torch.tensor(row, dtype=torch.int64, device=compat.group_device(group))
    rows = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(rows, local, group=group)
    return [tuple(each.tolist()) for each in rows]


class ProcessSum(Function):
    """The sum over processes of values that each has its own of; every process then holds the same.

    Whatever is made of the sum is made on every process alike, so that its derivative is the same everywhere, and is
    the derivative of each process's share: nothing is communicated on the way back.
    """

    @staticmethod
    def forward(share: Tensor, groups: Groups) -> Tensor:
        return all_reduce(share.clone(), groups, "sum")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.groups = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        return SharedValue.apply(grad_output, ctx.groups), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return sum_over_processes(tangent, ctx.groups)


class SharedValue(Function):
    """The reverse of `ProcessSum`: what is the same on every process enters the share of each."""

    @staticmethod
    def forward(value: Tensor, groups: Groups) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.groups = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        return sum_over_processes(grad_output, ctx.groups), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        value: Tensor = SharedValue.apply(tangent, ctx.groups)
        return value


class TracedProcessSum(Function):
    """`ProcessSum` for the compiler, which takes functions with a plain backward pass and nothing else."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, groups: Groups) -> Tensor:
        return all_reduce(share.clone(), groups, "sum")

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        return grad_output.clone(), None


def sum_over_processes(share: Tensor, groups: Groups) -> Tensor:
    """`ProcessSum`, where there is more than one process."""
    if not groups:
        return share
    total: Tensor = (TracedProcessSum if torch.compiler.is_compiling() else ProcessSum).apply(share, groups)
    return total
