"""A split loss, seen as a loss of global arrays: each process computes on its shard, and the answers are put together.

The shards are unequal on purpose, and with more than two of them one is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixent_conformance.harness import EAGER, Harness, Mode, Unsupported
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array
from unixent_conformance.split.engines import ProcessMesh
from unixent_conformance.under_test import WrongAnswer

# Where axes are cut, as fractions of their length.
CUTS: dict[int, tuple[float, ...]] = {1: (0, 1), 2: (0, 0.6, 1), 3: (0, 0.6, 0.6, 1), 4: (0, 0.5, 0.5, 0.8, 1)}

Function = Callable[..., Any]


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


def axes_of(arrays: dict[str, Array], axis: int) -> dict[str, ShardAxes]:
    """How the arrays of a call are cut; weight and normalizer are global on every process."""
    linear = "hidden" in arrays
    scores = arrays["hidden" if linear else "logits"]
    classes = scores.ndim - 1 if linear else axis % scores.ndim
    positions = None if scores.ndim == 1 else int(classes == 0 and not linear)
    flat = ShardAxes(None if scores.ndim == 1 else 0)
    return {
        "logits": ShardAxes(positions, classes),
        "hidden": flat,
        "classifier": ShardAxes(None, 0),
        "bias": ShardAxes(None, 0),
        "target": ShardAxes(positions, classes) if arrays["target"].ndim == scores.ndim else flat,
        "mask": flat,
        "weight": ShardAxes(),
        "normalizer": ShardAxes(),
        "losses": flat,
        "reduced": ShardAxes(),
    }


@dataclass(frozen=True)
class Sharded:
    """Functions of global arrays, out of functions of shards."""

    mesh: ProcessMesh
    harness: Harness
    mode: Mode

    def value(self, function: Function, names: tuple[str, ...]) -> Function:
        """A loss, or its two terms."""

        def on_global(*given: Any, **options: Any) -> Any:
            arrays, static, axes = self._sorted(names, given, options)

            def on_shard() -> tuple[Array, ...]:
                shards = self._cut(arrays, axes)
                leading = [shards.pop(name) for name in names]
                answer = function(*leading, **shards, **static)
                return tuple(map(self._read, answer if isinstance(answer, tuple) else (answer,)))

            loss = "losses" if static.get("reduction") == "none" else "reduced"
            joined = tuple(map(self.harness.from_numpy, self._together(on_shard, [loss] * 2, axes)))
            return joined if len(joined) > 1 else joined[0]

        return on_global

    def gradient(self, function: Function, both: Function | None, names: tuple[str, ...]) -> Function:
        """A loss and its gradients; by the framework's own differentiation of `function` in an autodiff mode."""

        def on_global(*given: Any, wrt: Any, grad_output: Any = None, **options: Any) -> Any:
            arrays, static, axes = self._sorted(names, given, options)
            loss = "losses" if static.get("reduction") == "none" else "reduced"
            upstream = None if grad_output is None else axes[loss].cut(self.harness.to_numpy(grad_output), self.mesh)
            wanted = (wrt,) if isinstance(wrt, str) else tuple(wrt)

            def on_shard() -> tuple[Array, ...]:
                seed = None if upstream is None else self.harness.from_numpy(upstream)
                shards = self._cut(arrays, axes)
                if both is None or self.mode.autodiff:
                    order = [*names, *(name for name in shards if name not in names)]

                    def of(*values: Any) -> Any:
                        named = dict(zip(order[len(names) :], values[len(names) :]))  # noqa: B905
                        return function(*values[: len(names)], **named, **static)

                    inputs, places = [shards[name] for name in order], [order.index(name) for name in wanted]
                    value, gradients = self.harness.gradient(of, inputs, places, seed, self.mode)
                else:
                    extra = {} if seed is None else {"grad_output": seed}
                    leading = [shards.pop(name) for name in names]
                    value, gradients = both(*leading, **shards, **static, **extra, wrt=wanted)
                return tuple(map(self._read, (value, *gradients)))

            value, *gradients = map(self.harness.from_numpy, self._together(on_shard, [loss, *wanted], axes))
            return value, gradients[0] if isinstance(wrt, str) else tuple(gradients)

        return on_global

    def _sorted(
        self, names: tuple[str, ...], given: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[dict[str, Array], dict[str, Any], dict[str, ShardAxes]]:
        """The arrays of a call, as NumPy's, its other options, and how the arrays are cut."""
        named = {
            name: value
            for name, value in options.items()
            if name in ("bias", "weight", "mask", "normalizer") and not isinstance(value, (int, float, type(None)))
        }
        static = {name: value for name, value in options.items() if name not in named}
        arrays = dict(zip(names, given, strict=True)) | named
        arrays = {name: self.harness.to_numpy(array) for name, array in arrays.items()}
        if self.mesh.data > 1 and arrays[names[0]].ndim < 2:
            raise Unsupported("a single position cannot be split over processes")
        linear = [arrays[name] for name in ("hidden", "classifier") if name in arrays]
        if self.mesh.data > 1 and any(array.dtype.itemsize == 2 for array in linear):
            raise Unsupported("each process rounds its share of a classifier's half-precision gradient")
        return arrays, static, axes_of(arrays, int(static.get("axis", -1)))

    def _cut(self, arrays: dict[str, Array], axes: dict[str, ShardAxes]) -> dict[str, Any]:
        return {name: self.harness.from_numpy(axes[name].cut(array, self.mesh)) for name, array in arrays.items()}

    def _read(self, value: Any) -> Array:
        if not self.harness.owns(value):
            raise WrongAnswer(f"the result is a {type(value).__module__}.{type(value).__name__}")
        return np.array(self.harness.to_numpy(value), order="C")

    def _together(
        self, on_shard: Callable[[], tuple[Array, ...]], names: list[str], axes: dict[str, ShardAxes]
    ) -> list[Array]:
        """The answers of all processes, joined; where one raised, all raise what is due on it."""
        try:
            answer: Any = on_shard()
        except Exception as error:
            answer = error
        answers = self.mesh.gather(answer)
        errors = [each for each in answers if isinstance(each, Exception)]
        if errors:
            # Other processes name the one that refused; its own error says what is wrong.
            first = next((each for each in errors if "refused its arguments" not in str(each)), errors[0])
            if len(errors) < len(answers):
                raise WrongAnswer(f"{len(answers) - len(errors)} processes answered while another raised {first!r}")
            raise first
        model, joined = self.mesh.model, []
        for place, name in enumerate(names[: len(answers[0])]):
            shards = [[each[place] for each in answers[i : i + model]] for i in range(0, len(answers), model)]
            if name in ("classifier", "bias") and self.mesh.data > 1:
                # Each process has the gradient of its own positions: the training loop adds them up.
                shards = [[np.sum(column, axis=0) for column in zip(*shards, strict=True)]]
            joined.append(axes[name].join(f"gradient of {name}" if place else "loss", shards))
        return joined


def on_shards(parallel: Implementation, harness: Harness, mesh: ProcessMesh, mode: Mode = EAGER) -> Implementation:
    """The implementation whose functions take global arrays and run those of `parallel` on this process's shards."""
    sharded = Sharded(mesh, harness, mode)
    logits, fused = ("logits", "target"), ("hidden", "classifier", "target")
    loss, terms, linear = parallel.loss, parallel.terms, parallel.linear
    both, linear_both = parallel.value_and_grad, parallel.linear_value_and_grad
    return replace(
        parallel,
        loss=sharded.value(loss, logits),
        terms=None if terms is None else sharded.value(terms, logits),
        value_and_grad=sharded.gradient(loss, both, logits),
        linear=None if linear is None else sharded.value(linear, fused),
        linear_value_and_grad=None if linear is None else sharded.gradient(linear, linear_both, fused),
    )
