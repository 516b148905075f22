"""torch's process groups: what goes over them, and how derivatives pass a sum over processes."""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from unixent.protocol import Sharding
from unixent.share_statistics import Processes
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
        vocab_start: index of the first class of this process; C where it has none.
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
            sharding.vocab_start(rank) if sharding.classes_per_rank[rank] else sharding.num_classes,
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
    local = torch.tensor(row, dtype=torch.int64)
    rows = [torch.empty_like(local) for _ in range(size)]
    dist.all_gather(rows, local, group=_host_group(group))
    return [tuple(each.tolist()) for each in rows]


_host_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _host_group(group: Any) -> Any:
    """The same processes as a group that exchanges host memory: what they agree on must not wait for a device.

    Made once for a group of accelerators alone (NCCL's), by its processes in their first call.
    """
    if compat.serves_host(group):
        return group
    if group not in _host_groups:
        ranks = dist.get_process_group_ranks(group)
        _host_groups[group] = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return _host_groups[group]


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


class TracedSharedValue(Function):
    """`SharedValue` for the compiler."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        return all_reduce(grad_output.clone(), ctx.groups, "sum"), None


def shared_value(value: Tensor, groups: Groups) -> Tensor:
    """A value that every process has, as it meets what each has its own of: its derivative is a sum over all."""
    if not groups:
        return value
    shared: Tensor = (TracedSharedValue if torch.compiler.is_compiling() else SharedValue).apply(value, groups)
    return shared


class ConstantReduction(Function):
    """A sum or maximum over processes without a derivative, under any transform."""

    @staticmethod
    def forward(values: Tensor, groups: Groups, operation: str) -> Tensor:
        return all_reduce(values.clone(), groups, operation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        return None


def _reduced(values: Tensor, groups: Groups, operation: str) -> Tensor:
    values = values.detach()
    if torch.compiler.is_compiling():
        return all_reduce(values.clone(), groups, operation)
    result: Tensor = ConstantReduction.apply(values, groups, operation)
    return result


def _class_sum(shard: LocalShard, values: Tensor) -> Tensor:
    groups = shard.model_groups
    if not values.is_floating_point():
        return _reduced(values, groups, "sum")
    if not torch.compiler.is_compiling():
        return sum_over_processes(values, groups)
    # See `unixent_torch.vocab_parallel.statistics`: here every process takes the others to hold as many classes.
    flat = torch.cat([values.reshape(-1), values.new_full((1,), float(shard.max_local_classes))])
    flat = sum_over_processes(flat, groups)
    return torch.where(flat[-1] == shard.num_classes, flat[:-1].view_as(values), math.nan)


def _gather(shard: LocalShard, values: Tensor) -> Tensor:
    """Those of all processes: a sum over places of which each process fills its own."""
    place, places = 0, 1
    for group in shard.model_groups:
        size = dist.get_world_size(group)
        place, places = place * size + dist.get_rank(group), places * size
    before, after = (values.new_zeros((*values.shape[:-1], n * values.shape[-1])) for n in (place, places - 1 - place))
    return _reduced(torch.cat((before, values, after), -1), shard.model_groups, "sum")


def processes_of(shard: LocalShard) -> Processes:
    """The processes of the model groups, as statistics of rows reduce over them."""
    return Processes(
        shard.vocab_start,
        shard.num_classes,
        sum=partial(_class_sum, shard),
        max=lambda values: _reduced(values, shard.model_groups, "max"),
        gather=partial(_gather, shard),
        beside=lambda column: shared_value(column, shard.model_groups),
    )
