"""DTensors: what their placements say of the split, the local problem under them, results as DTensors.

A mesh axis that shards the class dimension of the logits shares the classes, one that shards another dimension shares
the positions, and one that replicates holds copies of the same. Whatever is as large as the logits stays where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from unixent.errors import BackendError
from unixent.protocol import LinearProblem, LossProblem, Problem
from unixent_torch.collectives import LocalShard
from unixent_torch.vocab_parallel.layout import (
    Placements,
    PositionLayout,
    check_same_mesh,
    from_local,
    local_part,
    local_shape_and_offset,
    padded,
    replicated,
    wrap_like,
)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def call_eagerly(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)`` outside a program that is being compiled.

    To torch's compiler placements are constants: it can neither compare them nor make one of a dimension, and what it
    makes for one placement fails for another.
    """
    return function(*arguments)


def _checked_placements(name: str, value: DTensor, problem: LossProblem) -> Placements:
    """The placements of scores, every one of which says where a value is; their dimensions count from the front."""
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
    return tuple(Shard(p.dim % value.ndim) if isinstance(p, Shard) else p for p in value.placements)


def _axes(placements: Placements, mesh: Any, wanted: Callable[[int], bool] = lambda dim: True) -> list[int]:
    """The mesh axes of more than one process that shard a wanted dimension."""
    return [i for i, p in enumerate(placements) if isinstance(p, Shard) and wanted(p.dim) and mesh.size(i) > 1]


def _local_shard(
    mesh: Any, num_classes: int, placements: Placements, dim: int, shape: torch.Size, token_axes: list[int]
) -> LocalShard:
    """The part of the classes along ``dim`` of a tensor with these placements."""
    model_axes = _axes(placements, mesh, lambda each: each == dim)
    sizes, offsets = local_shape_and_offset(shape, mesh, placements)
    max_local_classes = shape[dim]
    for axis in model_axes:
        max_local_classes = math.ceil(max_local_classes / mesh.size(axis))
    return LocalShard(
        tuple(mesh.get_group(axis) for axis in model_axes),
        tuple(mesh.get_group(axis) for axis in token_axes),
        min(offsets[dim], num_classes) if sizes[dim] else num_classes,
        num_classes,
        max_local_classes,
    )


def _existing(array: Tensor, dim: int, shard: LocalShard) -> Tensor:
    """What of this process's classes exists: the rest of the vocabulary is padding."""
    return array.narrow(dim, 0, min(array.shape[dim], shard.num_classes - shard.vocab_start))


def _common_fields(problem: LossProblem, layout: PositionLayout) -> dict[str, Any]:
    """The fields that all forms share, but for probabilities of all classes."""
    fields: dict[str, Any] = {"weight": replicated(problem.weight), "normalizer": replicated(problem.normalizer)}
    if problem.mask is not None:
        fields["mask"] = layout.local("mask", problem.mask)
    if problem.target_kind != "probability":
        _check_grad_is_whole(problem.target)
        fields["target"] = layout.local("target", problem.target)
    if problem.ids is not None:
        fields["ids"] = layout.local("target.ids", problem.ids)
    return fields


def _check_grad_is_whole(target: Tensor) -> None:
    if not isinstance(target, DTensor) and target.requires_grad and torch.is_grad_enabled():
        raise BackendError(
            "target: expected a DTensor where its gradient is asked for, since a process has that of its part only"
        )


def _local_probabilities(target: Tensor, mesh: Any, placements: Placements) -> Tensor:
    if isinstance(target, DTensor):
        check_same_mesh("target", target, mesh)
        if tuple(target.placements) != placements:
            raise BackendError(
                f"target: expected probabilities that lie as the scores do, {placements}; "
                f"got {tuple(target.placements)} (redistribute them)"
            )
        return target.to_local()
    _check_grad_is_whole(target)
    return local_part(target, mesh, placements)


def localize(problem: Problem) -> tuple[Problem, LocalShard, PositionLayout]:
    """This process's part of a problem whose logits are a DTensor.

    Raises:
        BackendError: a placement is Partial or strided, tensors lie on different meshes, or ``parallel`` was given too.
    """
    x: DTensor = problem.logits
    mesh, axis = x.device_mesh, problem.axis
    placements = _checked_placements("logits", x, problem)
    positions = tuple(
        Shard(p.dim - (p.dim > axis)) if isinstance(p, Shard) and p.dim != axis else Replicate() for p in placements
    )
    shape = torch.Size((*x.shape[:axis], *x.shape[axis + 1 :]))
    layout = PositionLayout(mesh, shape, positions)
    token_axes = _axes(placements, mesh, lambda dim: dim != axis)
    shard = _local_shard(mesh, problem.num_classes, placements, axis, x.shape, token_axes)
    fields = _common_fields(problem, layout)
    if problem.target_kind == "probability":
        fields["target"] = _existing(_local_probabilities(problem.target, mesh, placements), axis, shard)
    return replace(problem, logits=_existing(x.to_local(), axis, shard), sharding=None, **fields), shard, layout


def localize_linear(problem: LinearProblem) -> tuple[LinearProblem, LocalShard, PositionLayout]:
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
    of_hidden = _checked_placements("hidden", hidden, problem)
    of_classifier = _checked_placements("classifier", classifier, problem)
    check_same_mesh("classifier", classifier, mesh)
    for i, (h, c) in enumerate(zip(of_hidden, of_classifier, strict=True)):
        if h == Shard(features) or c == Shard(1) or (isinstance(h, Shard) and isinstance(c, Shard)):
            raise BackendError(
                "hidden, classifier: expected each mesh axis to shard positions of hidden or classes of classifier, "
                f"and to replicate the other; got {h} and {c} on axis {i} (redistribute one of them)"
            )
    layout = PositionLayout(mesh, hidden.shape[:-1], of_hidden)
    token_axes = _axes(of_hidden, mesh)
    shard = _local_shard(mesh, problem.num_classes, of_classifier, 0, classifier.shape, token_axes)
    fields = _common_fields(problem, layout)
    if problem.target_kind == "probability":
        target = _local_probabilities(problem.target, mesh, _scores_placements(layout, of_classifier))
        fields["target"] = _existing(target, features, shard)
    if bias is not None:
        check_same_mesh("bias", bias, mesh)
        if tuple(bias.placements) != of_classifier:
            raise BackendError(
                f"bias: expected the placements of classifier, {of_classifier}; got {tuple(bias.placements)}"
            )
    gradients = _gradient_placements(mesh, of_classifier, of_hidden)
    local = replace(
        problem,
        hidden=hidden.to_local(),
        classifier=_existing(_local_with_summed_grad(classifier, gradients), 0, shard),
        bias=None if bias is None else _existing(_local_with_summed_grad(bias, gradients), 0, shard),
        sharding=None,
        **fields,
    )
    return local, shard, layout


def _as_dtensor(value: Tensor, mesh: Any, placements: Placements) -> DTensor:
    """A DTensor itself; one of a tensor that is whole on every process."""
    if isinstance(value, DTensor):
        return value
    return from_local(local_part(value, mesh, placements), mesh, placements, value.shape, value.stride())


def _scores_placements(layout: PositionLayout, of_classifier: Placements) -> Placements:
    """Those of the logits that the positions and a classifier make."""
    both, classes = zip(layout.placements, of_classifier, strict=True), len(layout.shape)
    return tuple(Shard(classes) if isinstance(c, Shard) else h for h, c in both)


def _gradient_placements(mesh: Any, of_classifier: Placements, positions: Placements) -> Placements:
    """Those of what a process has of the classifier's gradient: a sum over its own positions alone."""
    token_axes = _axes(positions, mesh)
    return tuple(Partial() if i in token_axes else placement for i, placement in enumerate(of_classifier))


def _local_with_summed_grad(value: DTensor, gradients: Placements) -> Tensor:
    return value.redistribute(placements=value.placements).to_local(grad_placements=gradients)


def wrap_gradients(
    problem: Problem | LinearProblem, layout: PositionLayout, wrt: tuple[str, ...], grads: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The gradients of this process as DTensors that lie as what they are taken with respect to."""
    wrapped = []
    for name, grad in zip(wrt, grads, strict=True):
        like = getattr(problem, name)
        if name == "target" and problem.target_kind == "sparse":
            wrapped.append(layout.wrap_target(grad, like))
        elif isinstance(problem, Problem):
            wrapped.append(wrap_like(grad, problem.logits, problem.axis))
        elif name in ("classifier", "bias"):
            partial = _gradient_placements(layout.mesh, like.placements, layout.placements)
            array = from_local(padded(grad, 0, like), layout.mesh, partial, like.shape, like.stride())
            wrapped.append(array.redistribute(placements=like.placements))
        elif name == "hidden":
            wrapped.append(wrap_like(grad, like))
        else:
            of_scores = _scores_placements(layout, problem.classifier.placements)
            wrapped.append(wrap_like(grad, _as_dtensor(like, layout.mesh, of_scores), like.ndim - 1))
    return tuple(wrapped)
