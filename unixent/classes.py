"""How many of the classes exist: what lies beyond ``num_classes`` is padding of the vocabulary, whatever it holds.

Arrays are narrowed to the classes that exist before anything is computed, and the gradients padded with zeros.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from unixent.protocol import Array, Backend, LinearProblem, LossProblem, Problem

P = TypeVar("P", bound=LossProblem)


def class_axes(problem: LossProblem) -> dict[str, int]:
    """The axis of the classes in each array of a problem that has one, but for the class weights."""
    if isinstance(problem, Problem):
        axes, axis = {"logits": problem.axis}, problem.axis
    else:
        assert isinstance(problem, LinearProblem)
        axes, axis = {"classifier": 0, "bias": 0}, len(problem.hidden.shape) - 1
    return axes | {"target": axis} if problem.target_kind == "probability" else axes


def take_existing(backend: Backend, problem: P, num_local_classes: int) -> P:
    """The problem with its arrays narrowed to their first ``num_local_classes`` classes."""
    narrowed = {}
    for name, axis in class_axes(problem).items():
        array = getattr(problem, name)
        if array is not None:
            narrowed[name] = backend.take_classes(array, axis, num_local_classes)
    return replace(problem, **narrowed)


def take_share(backend: Backend, problem: P, rank: int) -> P:
    """The problem of a process, the ``rank``-th of its model group, with what exists of its share of the classes."""
    sharding = problem.sharding
    if sharding is None or sharding.model_group is None or sharding.num_classes == problem.num_classes:
        return problem
    existing = sharding.existing(problem.num_classes)
    return replace(take_existing(backend, problem, existing.classes_per_rank[rank]), sharding=existing)


def pad_gradients(
    backend: Backend, problem: LossProblem, names: tuple[str, ...], grads: tuple[Array, ...], num_local_classes: int
) -> tuple[Array, ...]:
    """The gradients for ``names`` with zeros for what was narrowed away of ``num_local_classes`` classes."""
    axes = class_axes(problem)
    return tuple(
        backend.pad_classes(grad, axes[name], num_local_classes) if name in axes else grad
        for name, grad in zip(names, grads, strict=True)
    )
