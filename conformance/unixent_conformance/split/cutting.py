"""A split loss, seen as a loss of whole arrays: each process computes on its part, and the parts are put together.

The parts are unequal on purpose, and with more than two of them one is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixent_conformance.harness import EAGER, Harness, Mode, Unsupported
from unixent_conformance.implementation import Implementation
from unixent_conformance.oracle import Array
from unixent_conformance.runner import WrongAnswer
from unixent_conformance.split.engines import Grid

# Where axes are cut, as fractions of their length.
CUTS: dict[int, tuple[float, ...]] = {1: (0, 1), 2: (0, 0.6, 1), 3: (0, 0.6, 0.6, 1), 4: (0, 0.5, 0.5, 0.8, 1)}

Function = Callable[..., Any]


def part(size: int, parts: int, index: int) -> slice:
    """The share of one process.

    >>> [part(10, 4, index) for index in range(4)]
    [slice(0, 5, None), slice(5, 5, None), slice(5, 8, None), slice(8, 10, None)]
    """
    cuts = CUTS.get(parts) or tuple(index / parts for index in range(parts + 1))
    return slice(round(size * cuts[index]), round(size * cuts[index + 1]))


@dataclass(frozen=True)
class Axes:
    """Which axes of an array are cut: the one that positions are split along, the one of the classes."""

    positions: int | None = None
    classes: int | None = None

    def cut(self, array: Array, grid: Grid, data: int, model: int) -> Array:
        index = [slice(None)] * array.ndim
        if self.positions is not None:
            index[self.positions] = part(array.shape[self.positions], grid.data, data)
        if self.classes is not None:
            index[self.classes] = part(array.shape[self.classes], grid.model, model)
        return array[tuple(index)]

    def join(self, name: str, parts: list[list[Array]]) -> Array:
        """One array of the parts by data and model rank; what is not cut must be the same on all processes."""
        across = [self._along(self.classes, name, row) for row in parts]
        return self._along(self.positions, name, across)

    @staticmethod
    def _along(axis: int | None, name: str, parts: list[Array]) -> Array:
        if axis is not None:
            return np.concatenate(parts, axis=axis) if len(parts) > 1 else parts[0]
        for rank, other in enumerate(parts):
            if other.tobytes() != parts[0].tobytes():
                raise WrongAnswer(f"{name}: {other!r} on process {rank} of a group, {parts[0]!r} on process 0")
        return parts[0]


def axes_of(given: dict[str, Array], axis: int) -> dict[str, Axes]:
    """How the arrays of a call are cut."""
    linear = "hidden" in given
    lead = given["hidden" if linear else "logits"]
    classes = lead.ndim - 1 if linear else axis % lead.ndim
    positions = 0 if lead.ndim > 1 and (linear or classes != 0) else 1 if lead.ndim > 1 else None
    flat = None if lead.ndim == 1 else 0
    return {
        "logits": Axes(positions, classes),
        "hidden": Axes(flat),
        "classifier": Axes(None, 0),
        "bias": Axes(None, 0),
        "target": Axes(positions, classes) if given["target"].ndim == lead.ndim else Axes(flat),
        "mask": Axes(flat),
        # A loss, or its upstream gradient, under each reduction.
        "none": Axes(flat),
        "whole": Axes(),
    }


@dataclass(frozen=True)
class Cut:
    """Functions of whole arrays, out of functions of parts."""

    grid: Grid
    harness: Harness
    mode: Mode

    def value(self, function: Function, names: tuple[str, ...]) -> Function:
        """A loss, or its two terms."""

        def whole(*arrays: Any, **options: Any) -> Any:
            given, static = self._sort(names, arrays, options)
            axes = self._axes(given, static)
            none = static.get("reduction") == "none"

            def here() -> tuple[Array, ...]:
                found = function(*self._parts(names, given, axes), **self._named(names, given, axes), **static)
                return tuple(map(self._read, found if isinstance(found, tuple) else (found,)))

            joined = self._together(here, ["none" if none else "whole"] * 2, axes)
            own = tuple(map(self.harness.from_numpy, joined))
            return own if len(own) > 1 else own[0]

        return whole

    def gradient(self, function: Function, both: Function | None, names: tuple[str, ...]) -> Function:
        """A loss and its gradients; by the framework's own differentiation of `function` in an autodiff mode."""

        def whole(*arrays: Any, wrt: Any, grad_output: Any = None, **options: Any) -> Any:
            given, static = self._sort(names, arrays, options)
            axes = self._axes(given, static)
            none = static.get("reduction") == "none"
            upstream = None if grad_output is None else self.harness.to_numpy(grad_output)
            if upstream is not None and none:
                upstream = self._mine(axes["none"], upstream)
            wanted = (wrt,) if isinstance(wrt, str) else tuple(wrt)

            def here() -> tuple[Array, ...]:
                own = None if upstream is None else self.harness.from_numpy(upstream)
                parts, named = self._parts(names, given, axes), self._named(names, given, axes)
                if both is None or self.mode.autodiff:
                    everything = [*parts, *named.values()]
                    order = [*names, *named]

                    def of(*values: Any) -> Any:
                        return function(*values[: len(names)], **dict(zip(named, values[len(names) :])), **static)  # noqa: B905

                    positions = [order.index(name) for name in wanted]
                    value, gradients = self.harness.gradient(of, everything, positions, own, self.mode)
                else:
                    extra = {} if own is None else {"grad_output": own}
                    value, gradients = both(*parts, **named, **static, **extra, wrt=wanted)
                return tuple(map(self._read, (value, *gradients)))

            value, *joined = self._together(here, ["none" if none else "whole", *wanted], axes)
            gradients = tuple(map(self.harness.from_numpy, joined))
            return self.harness.from_numpy(value), gradients[0] if isinstance(wrt, str) else gradients

        return whole

    def _sort(
        self, names: tuple[str, ...], arrays: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """The arrays, as NumPy's, and the rest of a call."""
        named = {name: value for name, value in options.items() if name in ("bias", "weight", "mask", "normalizer")}
        numbers = {name for name, value in named.items() if isinstance(value, (int, float)) or value is None}
        given = dict(zip(names, arrays, strict=True)) | {k: v for k, v in named.items() if k not in numbers}
        static = {name: value for name, value in options.items() if name not in given}
        return {name: self.harness.to_numpy(array) for name, array in given.items()}, static

    def _axes(self, given: dict[str, Array], static: dict[str, Any]) -> dict[str, Axes]:
        lead = given.get("logits", given.get("hidden"))
        assert lead is not None
        if lead.ndim < 2 and self.grid.data > 1:
            raise Unsupported("a single position cannot be split over processes")
        linear = [given[name] for name in ("hidden", "classifier") if name in given]
        if self.grid.data > 1 and any(array.dtype.itemsize == 2 for array in linear):
            raise Unsupported("each process rounds its share of a classifier's half-precision gradient")
        return axes_of(given, int(static.get("axis", -1)))

    def _mine(self, axes: Axes, array: Array) -> Array:
        return axes.cut(array, self.grid, *self.grid.rank)

    def _parts(self, names: tuple[str, ...], given: dict[str, Array], axes: dict[str, Axes]) -> list[Any]:
        return [self.harness.from_numpy(self._mine(axes[name], given[name])) for name in names]

    def _named(self, names: tuple[str, ...], given: dict[str, Array], axes: dict[str, Axes]) -> dict[str, Any]:
        """The arrays that go by keyword; weight and normalizer are whole on every process."""
        return {
            name: self.harness.from_numpy(self._mine(axes.get(name, Axes()), array))
            for name, array in given.items()
            if name not in names
        }

    def _read(self, value: Any) -> Array:
        if not self.harness.owns(value):
            raise WrongAnswer(f"the result is a {type(value).__module__}.{type(value).__name__}")
        return np.array(self.harness.to_numpy(value), order="C")

    def _together(self, here: Callable[[], tuple[Array, ...]], kinds: list[str], axes: dict[str, Axes]) -> list[Array]:
        """What all processes found, joined; where one raised, all raise what is due on it."""
        try:
            found: Any = here()
        except Exception as error:
            found = error
        all_found = self.grid.gather(found)
        errors = [each for each in all_found if isinstance(each, Exception)]
        if errors:
            # A process that was told of another's refusal says so; the one at fault says what is wrong.
            first = next((each for each in errors if "refused its arguments" not in str(each)), errors[0])
            if len(errors) < len(all_found):
                raise WrongAnswer(f"{len(all_found) - len(errors)} processes answered while another raised {first!r}")
            raise first
        rows = [all_found[start : start + self.grid.model] for start in range(0, len(all_found), self.grid.model)]
        joined = []
        for place, kind in enumerate(kinds[: len(all_found[0])]):
            parts = [[each[place] for each in row] for row in rows]
            if kind in ("classifier", "bias") and self.grid.data > 1:
                # Each process has the gradient of its own positions: the training loop adds them up.
                parts = [[np.sum([row[m] for row in parts], axis=0) for m in range(self.grid.model)]]
            joined.append(axes[kind].join(f"gradient of {kind}" if place else "loss", parts))
        return joined


def over_grid(found: Implementation, harness: Harness, grid: Grid, mode: Mode = EAGER) -> Implementation:
    """The implementation whose functions take whole arrays and run `found` on this process's parts of them."""
    cut = Cut(grid, harness, mode)

    def split(function: Function | None) -> Function | None:
        if function is None:
            return None
        return lambda *arrays, **options: function(*arrays, parallel=grid.config, **options)

    loss, terms, both = split(found.loss), split(found.terms), split(found.value_and_grad)
    linear, linear_both = split(found.linear), split(found.linear_value_and_grad)
    fused = ("hidden", "classifier", "target")
    assert loss is not None
    return replace(
        found,
        loss=cut.value(loss, ("logits", "target")),
        terms=None if terms is None else cut.value(terms, ("logits", "target")),
        value_and_grad=cut.gradient(loss, both, ("logits", "target")),
        linear=None if linear is None else cut.value(linear, fused),
        linear_value_and_grad=None if linear is None else cut.gradient(linear, linear_both, fused),
    )
