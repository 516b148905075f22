"""Where a process's part of a tensor lies in the whole, by the placements of DTensors, and parts as DTensors again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from unixent.errors import BackendError

Placements = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class PositionLayout:
    """How the positions of a problem lie on its mesh.

    Attributes:
        mesh: the mesh.
        shape: P of the whole.
        placements: those of a tensor of that shape.
    """

    mesh: Any
    shape: torch.Size
    placements: Placements

    def local(self, name: str, value: Tensor) -> Tensor:
        """This process's part of a tensor P or P + (K,): of one that is whole on every process, or of a DTensor."""
        if isinstance(value, DTensor):
            check_same_mesh(name, value, self.mesh)
            if tuple(value.placements) != self.placements:
                value = value.redistribute(placements=self.placements)  # few numbers a position
            return value.to_local()
        return local_part(value, self.mesh, self.placements)

    def wrap(self, value: Tensor) -> Tensor:
        """The loss of this process as a DTensor: replicated where it is one number, else as the positions are."""
        if value.ndim == 0 and self.shape != ():
            return DTensor.from_local(value, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        shape = torch.Size((*self.shape, *value.shape[len(self.shape) :]))
        return from_local(value, self.mesh, self.placements, shape, torch.empty(shape, device="meta").stride())

    def wrap_target(self, value: Tensor, like: Tensor) -> Tensor:
        """A gradient P + (K,) of this process as a DTensor that lies as ``like`` does, if that is one."""
        whole = self.wrap(value)
        return whole.redistribute(placements=like.placements) if isinstance(like, DTensor) else whole

    def local_grad_output(self, value: Tensor | None) -> Tensor | None:
        """This process's part of an upstream gradient: of the shape of the positions, or one number."""
        if value is None or value.ndim < len(self.shape):
            return replicated(value)
        return self.local("grad_output", value)


def from_local(value: Tensor, mesh: Any, placements: Placements, shape: torch.Size, stride: tuple[int, ...]) -> DTensor:
    array: DTensor = DTensor.from_local(value, mesh, placements, run_check=False, shape=shape, stride=stride)
    return array


def wrap_like(value: Tensor, like: DTensor, axis: int | None = None) -> Tensor:
    """The gradient of this process as a DTensor that lies as ``like`` does, padded along the classes' ``axis``."""
    value = value if axis is None else padded(value, axis, like)
    return from_local(value, like.device_mesh, like.placements, like.shape, like.stride())


def check_same_mesh(name: str, value: DTensor, mesh: Any) -> None:
    if value.device_mesh != mesh:
        raise BackendError(
            f"{name}: expected a DTensor on the mesh of the scores, {mesh}; got one on {value.device_mesh}"
        )


def local_shape_and_offset(shape: torch.Size, mesh: Any, placements: Placements) -> tuple[list[int], list[int]]:
    """The shape of this process's part, and where it starts, as DTensors are cut: by `torch.chunk`, axis by axis."""
    sizes, offsets = list(shape), [0] * len(shape)
    for axis, placement in enumerate(placements):
        if isinstance(placement, Shard):
            dim = placement.dim
            step = math.ceil(sizes[dim] / mesh.size(axis))
            start = min(sizes[dim], step * mesh.get_local_rank(axis))
            offsets[dim] += start
            sizes[dim] = min(step, sizes[dim] - start)
    return sizes, offsets


def local_part(value: Tensor, mesh: Any, placements: Placements) -> Tensor:
    sizes, offsets = local_shape_and_offset(value.shape, mesh, placements)
    for dim, (size, start) in enumerate(zip(sizes, offsets, strict=True)):
        value = value.narrow(dim, start, size)
    return value


def replicated(value: Any) -> Any:
    """A class weight or a number, whole on every process."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def padded(array: Tensor, dim: int, like: DTensor) -> Tensor:
    """A gradient of the classes that exist here, with zeros for the rest of this process's part of ``like``."""
    size = local_shape_and_offset(like.shape, like.device_mesh, like.placements)[0][dim]
    zeros = array.new_zeros((*array.shape[:dim], size - array.shape[dim], *array.shape[dim + 1 :]))
    return torch.cat((array, zeros), dim) if zeros.shape[dim] else array
