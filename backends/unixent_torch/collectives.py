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


class Parts(NamedTuple):
    """Where the tensors of this process lie in the whole.

    Attributes:
        model: the groups that share the classes.
        token: the groups that share the positions.
        first_class: index of the first class here.
        classes: C of the whole vocabulary.
        most: the most classes that any process of the model groups holds.
    """

    model: Groups
    token: Groups
    first_class: int
    classes: int
    most: int

    @classmethod
    def of(cls, split: Sharding) -> Parts:
        model = _of_several(split.model_group)
        rank = dist.get_rank(model[0]) if model else 0
        token, most = _of_several(split.token_group), max(split.classes_per_rank)
        return cls(model, token, split.vocab_start(rank), split.num_classes, most)


def _of_several(group: Any) -> Groups:
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


def gather(row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
    """The rows of all processes of a group. A compiled program is one for all: there every row is this one."""
    size = dist.get_world_size(group)
    if torch.compiler.is_compiling():
        return [row] * size
    own = torch.tensor(row, dtype=torch.int64, device=compat.group_device(group))
    rows = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(rows, own, group=group)
    return [tuple(each.tolist()) for each in rows]


class Total(Function):
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
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return Shared.apply(upstream, ctx.groups), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return total(tangent, ctx.groups)


class Shared(Function):
    """The reverse of `Total`: what is the same on every process enters the share of each."""

    @staticmethod
    def forward(value: Tensor, groups: Groups) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.groups = inputs[1]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return total(upstream, ctx.groups), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        found: Tensor = Shared.apply(tangent, ctx.groups)
        return found


class TracedTotal(Function):
    """`Total` for the compiler, which takes functions with a plain backward pass and nothing else."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, groups: Groups) -> Tensor:
        return all_reduce(share.clone(), groups, "sum")

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return upstream.clone(), None


def total(share: Tensor, groups: Groups) -> Tensor:
    """`Total`, where there is more than one process."""
    if not groups:
        return share
    found: Tensor = (TracedTotal if torch.compiler.is_compiling() else Total).apply(share, groups)
    return found
