"""An implementation, seen through a harness in one mode: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unixent_conformance.cases.model import Call
from unixent_conformance.harness import BATCH, EAGER, Harness, Mode, Unsupported
from unixent_conformance.implementation import Implementation
from unixent_conformance.oracle import Array


@dataclass(frozen=True)
class Subject:
    """An implementation, seen through a harness in one mode: NumPy in, NumPy out."""

    harness: Harness
    implementation: Implementation
    mode: Mode = EAGER

    def loss(self, call: Call) -> Array:
        return self._read(self._run(self._linear if call.linear else self.implementation.loss, call))

    def terms(self, call: Call) -> tuple[Array, Array]:
        if self.implementation.terms is None:
            raise Unsupported(f"{self.implementation.name} has no loss_terms")
        numerator, denominator = self._run(self.implementation.terms, call)
        return self._read(numerator), self._read(denominator)

    def gradient(self, call: Call, wrt: str = "logits") -> tuple[Array, Array]:
        """The loss and d sum(upstream * loss)/d logits or target."""
        both = self.implementation.value_and_grad
        upstream = None if call.upstream is None else self._give(call.upstream)
        if both is None or self.mode.autodiff:
            function, arrays = self._bind(self.implementation.loss, call)
            position = list(call.arrays()).index(wrt)
            value, (gradient,) = self.harness.gradient(function, arrays, (position,), upstream, self.mode)
        else:
            extra = {"wrt": wrt} if upstream is None else {"wrt": wrt, "grad_output": upstream}
            value, gradient = self._run(both, call, **extra)
        return self._read(value), self._read(gradient)

    def gradients(self, call: Call, wrt: tuple[str, ...]) -> tuple[Array, ...]:
        """Several gradients of one call."""
        both = self.implementation.value_and_grad
        if both is None:
            raise Unsupported(f"{self.implementation.name} has no value_and_grad")
        return tuple(self._read(gradient) for gradient in self._run(both, call, wrt=wrt)[1])

    def touched(self, call: Call) -> list[str]:
        """The array arguments that a call of the value and one of the gradient have changed."""
        changed: set[str] = set()
        for function in (self.implementation.loss, self.implementation.value_and_grad):
            if function is not None:
                bound, arrays = self._bind(function, call)
                before = [self.harness.to_numpy(array).tobytes() for array in arrays]
                self.harness.call(bound, arrays, self.mode)
                after = [self.harness.to_numpy(array).tobytes() for array in arrays]
                changed |= {name for name, b, a in zip(call.arrays(), before, after, strict=True) if b != a}
        return sorted(changed)

    def linear_gradients(self, call: Call) -> tuple[Array, ...]:
        """The fused loss and its gradient for each of `call.differentiable()`."""
        both, names = self.implementation.linear_value_and_grad, call.differentiable()
        upstream = None if call.upstream is None else self._give(call.upstream)
        if both is None or self.mode.autodiff:
            function, arrays = self._bind(self._linear, call)
            positions = [list(call.arrays()).index(name) for name in names]
            value, gradients = self.harness.gradient(function, arrays, positions, upstream, self.mode)
        else:
            extra = {"wrt": names} if upstream is None else {"wrt": names, "grad_output": upstream}
            value, gradients = self._run(both, call, **extra)
        return self._read(value), *(self._read(gradient) for gradient in gradients)

    def curvature(self, call: Call) -> tuple[Array, ...]:
        """How the gradients of `call.differentiable()` change along `call.directions()`."""
        function, arrays = self._bind(self._linear if call.linear else self.implementation.loss, call)
        upstream = None if call.upstream is None else self._give(call.upstream)
        positions = [list(call.arrays()).index(name) for name in call.differentiable()]
        along = [self._give(array) for array in call.directions().values()]
        return tuple(map(self._read, self.harness.curvature(function, arrays, positions, upstream, along, self.mode)))

    @property
    def _linear(self) -> Callable[..., Any]:
        if self.implementation.linear is None:
            raise Unsupported(f"{self.implementation.name} has no fused linear form")
        return self.implementation.linear

    def _run(self, function: Callable[..., Any], call: Call, **extra: Any) -> Any:
        bound, arrays = self._bind(function, call, **extra)
        return self.harness.call(bound, arrays, self.mode)

    def _bind(self, function: Callable[..., Any], call: Call, **extra: Any) -> tuple[Callable[..., Any], list[Any]]:
        """A function of the arrays alone, and the arrays."""
        leading = 3 if call.linear else 2
        names = list(call.arrays())[leading:]
        options = {**call.static(), **extra}

        def bound(*given: Any) -> Any:
            # A loop, since MindSpore compiles this function's source, where dict(zip(...)) is unknown.
            named = {}
            for name, value in zip(names, given[leading:]):  # noqa: B905
                named[name] = value  # noqa: PERF403
            return function(*given[:leading], **named, **options)

        return bound, [self._give(array) for array in call.arrays().values()]

    def _give(self, array: Array) -> Any:
        return self.harness.from_numpy(_among_others(array) if self.mode.batched else array)

    def _read(self, value: Any) -> Array:
        if not self.harness.owns(value):
            raise WrongAnswer(f"the result is a {type(value).__module__}.{type(value).__name__}")
        found = self.harness.to_numpy(value)
        if not self.mode.batched:
            return found
        if found.shape[:1] != (BATCH,):
            raise WrongAnswer(f"mapped over {BATCH} examples, the result has shape {found.shape}")
        return np.asarray(found[BATCH // 2])


def _among_others(array: Array) -> Array:
    """A batch with the array in its middle, between others that are made of it."""
    flat = np.ravel(array)
    with np.errstate(all="ignore"):
        sides = [np.roll(flat, step) * (factor if array.dtype.kind not in "iub" else 1) for step, factor in SIDES]
        return np.stack([sides[0].astype(array.dtype), flat, sides[1].astype(array.dtype)]).reshape(BATCH, *array.shape)


# How the neighbours are made: so far around, times so much.
SIDES = ((1, 0.5), (-1, 1.5))


class WrongAnswer(Exception):
    """An answer that is no array of the framework."""
