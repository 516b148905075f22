"""A backend of unixent for `Box`, a framework's array in the smallest form: NumPy values that are not a NumPy array.

The arithmetic is borrowed from the NumPy backend, so that what is left to read is the plug itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from unixent.protocol import ArrayInfo, Device, LinearProblem, LossProblem, LossTerms, Problem
from unixent_numpy import NumpyBackend

P = TypeVar("P", bound=LossProblem)


@dataclass(frozen=True, eq=False)
class Box:
    """An array of the toy framework."""

    values: np.ndarray[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> str:
        return self.values.dtype.name

    def __float__(self) -> float:
        return float(self.values)


def opened(problem: P) -> P:
    """The problem with every box replaced by what is in it."""
    values = {field.name: getattr(problem, field.name) for field in fields(problem)}
    return replace(problem, **{name: value.values for name, value in values.items() if isinstance(value, Box)})


def boxed(result: Any) -> Any:
    """Results as boxes, whether one array, the two of `LossTerms` or a tuple of gradients."""
    if isinstance(result, LossTerms):
        return LossTerms(Box(result.numerator), Box(result.denominator))
    return tuple(map(boxed, result)) if isinstance(result, tuple) else Box(np.asarray(result))


class ToyBackend:
    """`unixent.Backend` for boxes."""

    name = "toy"
    version = "0.3.0"
    targets = frozenset({"index", "probability"})
    capabilities = replace(NumpyBackend.capabilities, targets=targets, parallel=False, position_stats=False)

    def __init__(self) -> None:
        self._numpy = NumpyBackend()

    def devices(self) -> tuple[Device, ...]:
        return (Device("toybox", "NumPy", batch_invariant=True),)

    def owns(self, array: object) -> bool:
        return isinstance(array, Box)

    def describe(self, arrays: tuple[Box, ...]) -> tuple[ArrayInfo, ...]:
        return tuple(ArrayInfo(array.shape, array.dtype, device="toybox") for array in arrays)

    def asarray(self, value: np.ndarray[Any, Any], like: Box | None) -> Box:
        return Box(value)

    def broadcast_to(self, array: Box, shape: tuple[int, ...]) -> Box:
        return Box(np.broadcast_to(array.values, shape))

    def take_classes(self, array: Box, axis: int, num_classes: int) -> Box:
        return Box(self._numpy.take_classes(array.values, axis, num_classes))

    def pad_classes(self, array: Box, axis: int, num_classes: int) -> Box:
        return Box(self._numpy.pad_classes(array.values, axis, num_classes))

    def first_invalid_target(self, target: Box, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        return self._numpy.first_invalid_target(target.values, num_classes, ignore_index)

    def first_nonfinite(self, array: Box) -> int | None:
        return self._numpy.first_nonfinite(array.values)

    def cross_entropy(self, problem: Problem) -> Any:
        return boxed(self._numpy.cross_entropy(opened(problem)))

    def value_and_grad(self, problem: Problem, grad_output: Box | None, wrt: tuple[str, ...]) -> Any:
        upstream = None if grad_output is None else grad_output.values
        return boxed(self._numpy.value_and_grad(opened(problem), upstream, wrt))

    def linear_cross_entropy(self, problem: LinearProblem) -> Any:
        return boxed(self._numpy.linear_cross_entropy(opened(problem)))

    def linear_value_and_grad(self, problem: LinearProblem, grad_output: Box | None, wrt: tuple[str, ...]) -> Any:
        upstream = None if grad_output is None else grad_output.values
        return boxed(self._numpy.linear_value_and_grad(opened(problem), upstream, wrt))


backend = ToyBackend()
