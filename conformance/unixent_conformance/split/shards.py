"""A split loss under test: each process computes on its shard of a call, and the answers are put together.

The shards are unequal on purpose, and with more than two of them one is empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from unixent_conformance.harness import Unsupported
from unixent_conformance.model import Array, Call, Quantity
from unixent_conformance.returned import WrongAnswer
from unixent_conformance.split.engines import ProcessMesh
from unixent_conformance.under_test import Subject

# Where axes are cut, as fractions of their length.
CUTS: dict[int, tuple[float, ...]] = {1: (0, 1), 2: (0, 0.6, 1), 3: (0, 0.6, 0.6, 1), 4: (0, 0.5, 0.5, 0.8, 1)}


def shard(size: int, shards: int, index: int) -> slice:
    """The share of one process.

    >>> [shard(10, 4, index) for index in range(4)]
    [slice(0, 5, None), slice(5, 5, None), slice(5, 8, None), slice(8, 10, None)]
    """
    cuts = CUTS.get(shards) or tuple(index / shards for index in range(shards + 1))
    return slice(round(size * cuts[index]), round(size * cuts[index + 1]))


@dataclass(frozen=True)
class ShardAxes:
    """Which axes of an array are cut: the one that positions are split along, the one of the classes."""

    positions: int | None = None
    classes: int | None = None

    def cut(self, array: Array, mesh: ProcessMesh) -> Array:
        """This process's shard."""
        index = [slice(None)] * array.ndim
        for axis, shards, rank in ((self.positions, mesh.data, mesh.rank[0]), (self.classes, mesh.model, mesh.rank[1])):
            if axis is not None:
                index[axis] = shard(array.shape[axis], shards, rank)
        return array[tuple(index)]

    def join(self, name: str, shards: list[list[Array]]) -> Array:
        """One array of the shards by data and model rank; what is not cut must be the same on all processes."""
        return _joined(self.positions, name, [_joined(self.classes, name, row) for row in shards])


def _joined(axis: int | None, name: str, shards: list[Array]) -> Array:
    if axis is not None:
        return np.concatenate(shards, axis=axis) if len(shards) > 1 else shards[0]
    for rank, other in enumerate(shards):
        if other.tobytes() != shards[0].tobytes():
            raise WrongAnswer(f"{name}: {other!r} on process {rank} of a group, {shards[0]!r} on process 0")
    return shards[0]


def axes_of(call: Call) -> dict[str, ShardAxes]:
    """How the arrays of a call, and of its answer, are cut; what is not named is the same on every process."""
    scores = call.hidden if call.linear else call.logits
    classes = scores.ndim - 1 if call.linear else call.options.get("axis", -1) % scores.ndim
    positions = None if scores.ndim == 1 else int(classes == 0 and not call.linear)
    flat = ShardAxes(None if scores.ndim == 1 else 0)
    axes = {
        "logits": ShardAxes(positions, classes),
        "hidden": flat,
        "classifier": ShardAxes(None, 0),
        "bias": ShardAxes(None, 0),
        "target": ShardAxes(positions, classes) if call.target.ndim == scores.ndim and not call.tail else flat,
        "mask": flat if call.mask is None or call.mask.shape[:1] != (1,) else ShardAxes(),
        "selected": flat,
        "ids": flat,
    }
    by_position = call.reduction == "none" or call.statistic
    return {**axes, "grad_output": flat, "loss": flat} if by_position else axes


@dataclass(frozen=True)
class ShardedSubject(Subject):
    """A subject that answers each call together with the other processes, each by its shard of the arrays."""

    mesh: ProcessMesh = field(kw_only=True)

    @property
    def judges(self) -> bool:
        return self.mesh.rank == (0, 0)

    def answer(self, call: Call, quantity: Quantity) -> tuple[Array, ...]:
        """The parts of the answer of all processes, joined; where one raised, all raise what is due on it."""
        mesh, axes, scores = self.mesh, axes_of(call), call.hidden if call.linear else call.logits
        if mesh.data > 1 and scores.ndim < 2:
            raise Unsupported("a single position cannot be split over processes")
        if mesh.data > 1 and call.linear and 2 in (call.hidden.itemsize, call.classifier.itemsize):
            raise Unsupported("each process rounds its share of a classifier's half-precision gradient")
        shards: dict[str, Any] = {
            name: axes[name].cut(array, mesh) for name, array in call.all_arrays().items() if name in axes
        }
        try:
            answer: Any = super().answer(replace(call, **shards), quantity)
        except Exception as error:
            answer = error
        answers = mesh.gather(answer)
        errors = [each for each in answers if isinstance(each, Exception)]
        if errors:
            # Other processes name the one that refused; its own error says what is wrong.
            first = next((each for each in errors if "refused its arguments" not in str(each)), errors[0])
            if len(errors) < len(answers):
                raise WrongAnswer(f"{len(answers) - len(errors)} processes answered while another raised {first!r}")
            raise first
        names = ("numerator", "denominator") if quantity == "terms" else ("loss", *call.wrt(quantity))
        joined = []
        for place, name in enumerate(names):
            parts = [each[place] for each in answers]
            grid = [parts[start : start + mesh.model] for start in range(0, len(parts), mesh.model)]
            if name in ("classifier", "bias") and mesh.data > 1:
                # Each process has the gradient of its own positions: the training loop adds them up.
                grid = [[np.sum(column, axis=0) for column in zip(*grid, strict=True)]]
            label = f"gradient of {name}" if name in call.arrays() else name
            joined.append(axes.get(name, ShardAxes()).join(label, grid))
        return tuple(joined)
