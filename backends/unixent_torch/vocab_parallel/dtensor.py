"""DTensors: what their placements say of the split, the local problem under them, and results that are DTensors again.

A mesh axis that shards the class dimension of the logits shares the classes, one that shards another dimension shares
the positions, and one that replicates holds copies of the same. Whatever is as large as the logits stays where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from unixent.errors import BackendError
from unixent.protocol import LinearProblem, LossProblem, Problem
from unixent_torch.collectives import Parts

Placements = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the positions of a problem lie on its mesh.

    Attributes:
        mesh: the mesh.
        shape: P of the whole.
        positions: the placements of a tensor of that shape.
    """

    mesh: Any
    shape: torch.Size
    positions: Placements

    def local(self, name: str, value: Tensor) -> Tensor:
        """This process's part of a tensor of shape P: of one that is whole on every process, or of a DTensor."""
        if isinstance(value, DTensor):
            _same_mesh(name, value, self.mesh)
            if tuple(value.placements) != self.positions:
                value = value.redistribute(placements=self.positions)  # one number a position
            return value.to_local()
        return _part(value, self.mesh, self.positions)

    def wrap(self, value: Tensor) -> Tensor:
        """The loss of this process as a DTensor: replicated where it is one number, else as the positions are."""
        if value.ndim == 0 and self.shape != ():
            return DTensor.from_local(value, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)
        return _whole(value, self.mesh, self.positions, self.shape, torch.empty(self.shape, device="meta").stride())

    def upstream(self, value: Tensor | None) -> Tensor | None:
        """This process's part of an upstream gradient: of the shape of the positions, or one number."""
        if value is None or value.ndim < len(self.shape):
            return _constant(value)
        return self.local("grad_output", value)


def _whole(value: Tensor, mesh: Any, placements: Placements, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    found: Tensor = DTensor.from_local(value, mesh, placements, run_check=False, shape=shape, stride=stride)
    return found


def wrap_like(value: Tensor, whole: DTensor) -> Tensor:
    """The gradient of this process as a DTensor that lies as ``whole`` does."""
    return _whole(value, whole.device_mesh, whole.placements, whole.shape, whole.stride())


def _same_mesh(name: str, value: DTensor, mesh: Any) -> None:
    if value.device_mesh != mesh:
        raise BackendError(
            f"{name}: expected a DTensor on the mesh of the scores, {mesh}; got one on {value.device_mesh}"
        )


def _part(value: Tensor, mesh: Any, placements: Placements) -> Tensor:
    shape, offset = compute_local_shape_and_global_offset(value.shape, mesh, placements)
    for dim, (size, start) in enumerate(zip(shape, offset, strict=True)):
        value = value.narrow(dim, min(start, value.shape[dim]), size)
    return value


def _constant(value: Any) -> Any:
    """A class weight or a number, whole on every process."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _checked(name: str, value: DTensor, problem: LossProblem) -> Placements:
    """The placements of scores, every one of which says where a value is."""
    if problem.sharding is not None:
        raise BackendError(
            f"parallel: expected None beside {name} that are a DTensor, whose placements say how they are split"
        )
    if value.device_mesh.get_coordinate() is None:
        raise BackendError(f"{name}: expected a DTensor on a mesh with this process in it; got {value.device_mesh}")
    for placement in value.placements:
        if type(placement) not in (Shard, Replicate):
            raise BackendError(
                f"{name}: expected placements Shard and Replicate; got {tuple(value.placements)} "
                "(redistribute it before the loss)"
            )
    return tuple(value.placements)


def _axes(placements: Placements, mesh: Any, wanted: Callable[[int], bool] = lambda dim: True) -> list[int]:
    """The mesh axes of more than one process that shard a wanted dimension."""
    return [i for i, p in enumerate(placements) if isinstance(p, Shard) and wanted(p.dim) and mesh.size(i) > 1]


def _parts(mesh: Any, classes: int, placements: Placements, dim: int, shape: torch.Size, token: list[int]) -> Parts:
    """The split of ``classes`` along ``dim`` of a tensor with these placements."""
    model = _axes(placements, mesh, lambda each: each == dim)
    local, offset = compute_local_shape_and_global_offset(shape, mesh, placements)
    most = classes
    for axis in model:
        most = math.ceil(most / mesh.size(axis))
    return Parts(
        tuple(mesh.get_group(axis) for axis in model),
        tuple(mesh.get_group(axis) for axis in token),
        min(offset[dim], classes) if local[dim] else classes,
        classes,
        most,
    )


def _sides(problem: LossProblem, layout: Layout) -> dict[str, Any]:
    """The fields that all forms share, but for probabilities."""
    found: dict[str, Any] = {"weight": _constant(problem.weight), "normalizer": _constant(problem.normalizer)}
    if problem.mask is not None:
        found["mask"] = layout.local("mask", problem.mask)
    if problem.target_kind == "index":
        found["target"] = layout.local("target", problem.target)
    return found


def _probabilities(target: Tensor, mesh: Any, placements: Placements) -> Tensor:
    if isinstance(target, DTensor):
        _same_mesh("target", target, mesh)
        if tuple(target.placements) != placements:
            raise BackendError(
                f"target: expected probabilities that lie as the scores do, {placements}; "
                f"got {tuple(target.placements)} (redistribute them)"
            )
        return target.to_local()
    if target.requires_grad and torch.is_grad_enabled():
        raise BackendError(
            "target: expected a DTensor where its gradient is asked for, since a process has that of its part only"
        )
    return _part(target, mesh, placements)


def localize(problem: Problem) -> tuple[Problem, Parts, Layout]:
    """This process's part of a problem whose logits are a DTensor.

    Raises:
        BackendError: a placement is Partial or strided, tensors lie on different meshes, or ``parallel`` was given too.
    """
    x: DTensor = problem.logits
    mesh, axis = x.device_mesh, problem.axis
    placements = _normal(_checked("logits", x, problem), x.ndim)
    positions = tuple(
        Shard(p.dim - (p.dim > axis)) if isinstance(p, Shard) and p.dim != axis else Replicate() for p in placements
    )
    shape = torch.Size((*x.shape[:axis], *x.shape[axis + 1 :]))
    layout = Layout(mesh, shape, positions)
    token = _axes(placements, mesh, lambda dim: dim != axis)
    parts = _parts(mesh, problem.num_classes, placements, axis, x.shape, token)
    fields = _sides(problem, layout)
    if problem.target_kind == "probability":
        fields["target"] = _probabilities(problem.target, mesh, placements)
    return replace(problem, logits=x.to_local(), sharding=None, **fields), parts, layout


def _normal(placements: Placements, ndim: int) -> Placements:
    return tuple(Shard(p.dim % ndim) if isinstance(p, Shard) else p for p in placements)


def localize_linear(problem: LinearProblem) -> tuple[LinearProblem, Parts, Layout]:
    """This process's part of a fused linear problem whose hidden states, classifier and bias are DTensors.

    A mesh axis shards the positions of the hidden states or the classes of the classifier, and replicates the other.

    Raises:
        BackendError: as `localize`; or an axis shards both, or features; or only some of these are DTensors.
    """
    hidden, classifier, bias = problem.hidden, problem.classifier, problem.bias
    for name, value in (("hidden", hidden), ("classifier", classifier), ("bias", bias)):
        if value is not None and not isinstance(value, DTensor):
            raise BackendError(
                f"{name}: expected a DTensor, since others of hidden, classifier and bias are; got a local tensor "
                "(distribute_tensor(..., [Replicate()]) where it is the same everywhere)"
            )
    mesh, features = hidden.device_mesh, hidden.ndim - 1
    placed = _normal(_checked("hidden", hidden, problem), hidden.ndim)
    rows = _normal(_checked("classifier", classifier, problem), 2)
    _same_mesh("classifier", classifier, mesh)
    for i, (h, c) in enumerate(zip(placed, rows, strict=True)):
        if h == Shard(features) or c == Shard(1) or (isinstance(h, Shard) and isinstance(c, Shard)):
            raise BackendError(
                "hidden, classifier: expected each mesh axis to shard positions of hidden or classes of classifier, "
                f"and to replicate the other; got {h} and {c} on axis {i} (redistribute one of them)"
            )
    token = _axes(placed, mesh)
    layout = Layout(mesh, hidden.shape[:-1], placed)
    parts = _parts(mesh, problem.num_classes, rows, 0, classifier.shape, token)
    fields = _sides(problem, layout)
    if problem.target_kind == "probability":
        both = tuple(Shard(features) if isinstance(c, Shard) else h for h, c in zip(placed, rows, strict=True))
        fields["target"] = _probabilities(problem.target, mesh, both)
    if bias is not None:
        _same_mesh("bias", bias, mesh)
        if tuple(bias.placements) != rows:
            raise BackendError(f"bias: expected the placements of classifier, {rows}; got {tuple(bias.placements)}")
    summed = _summed(mesh, rows, placed)
    local = replace(
        problem,
        hidden=hidden.to_local(),
        classifier=_local_sum(classifier, summed),
        bias=None if bias is None else _local_sum(bias, summed),
        sharding=None,
        **fields,
    )
    return local, parts, layout


def _local_sum(value: DTensor, summed: Placements) -> Tensor:
    return value.redistribute(placements=value.placements).to_local(grad_placements=summed)


def wrap_linear(
    problem: LinearProblem, layout: Layout, wrt: tuple[str, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The gradients of this process as DTensors that lie as what they are taken with respect to."""
    found = []
    for name, grad in zip(wrt, grads, strict=True):
        whole = getattr(problem, name)
        if name in ("classifier", "bias"):
            summed = _summed(layout.mesh, whole.placements, layout.positions)
            grad = _whole(grad, layout.mesh, summed, whole.shape, whole.stride()).redistribute(
                placements=whole.placements
            )
        else:
            grad = wrap_like(grad, whole)
        found.append(grad)
    return tuple(found)


def _summed(mesh: Any, rows: Placements, positions: Placements) -> Placements:
    """What a process finds for its positions is a part of the classifier's gradient, which lies as the classifier."""
    token = _axes(positions, mesh)
    return tuple(Partial() if i in token else placement for i, placement in enumerate(rows))
