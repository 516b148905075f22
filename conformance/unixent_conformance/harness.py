"""What the suite must know of a framework: how arrays go in, how results come out, how a gradient is taken.

A harness never goes through the code under test. To add one, write a module in `unixent_conformance.harnesses` (or
anywhere, and pass the object to `unixent_conformance.run`) with an instance named `harness`; ten lines do:

    import numpy as np
    import torch

    from unixent_conformance.harness import Harness, Mode, Tier

    class TorchHarness(Harness):
        name = "torch"
        modes = (
            Mode("eager"),
            Mode("autograd", autodiff=True),
            Mode("compile", traced=True, autodiff=True, tier=Tier.CORE, transform="jit"),
        )

        def from_numpy(self, array):            # a copy: the suite compares its own arrays afterwards
            return torch.from_numpy(array.copy())

        def to_numpy(self, array):
            return array.detach().cpu().numpy()

        def gradient(self, of, mode):           # of: a `Derivative`
            leaves = [a.clone().requires_grad_(i in of.wrt) for i, a in enumerate(of.arrays)]
            value = self.call(of.function, leaves, mode)
            return value, torch.autograd.grad(value, [leaves[i] for i in of.wrt], of.grad_output)

        def call(self, function, arrays, mode):
            return torch.compile(function, fullgraph=True)(*arrays) if mode.traced else function(*arrays)

(bfloat16 comes and goes as an `ml_dtypes.bfloat16` array, which a real harness must convert.) Raise `Unsupported` where
the framework cannot hold a dtype: the case then counts as refused, not as a failure. So does a case of a dtype that
comes back as another.

A function transform is one more mode. `Mode("vmap", traced=True, autodiff=True, tier=Tier.FEW, transform="vmap")` has
every array stacked with two neighbours, and `call` and `gradient` map over that axis. In a mode of forward
differentiation `gradient` may leave the work to `forward_gradient`. `hvp` differentiates a gradient once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unixent_conformance.model import Array, Tier


class Unsupported(Exception):
    """The framework, not the implementation, has no such thing (a dtype, automatic differentiation)."""


@dataclass(frozen=True)
class Mode:
    """A way to run a case.

    traced: values cannot be read while the call runs, so an index out of range and an empty mean under
        on_empty="raise" give NaN instead of an error, and cases about errors are left out.
    autodiff: gradients come from the framework's differentiation of the loss instead of `value_and_grad`; cases that
        ask for no gradient are left out unless the mode is also traced.
    tier: how many cases it has; fewer where each is expensive (a compilation, a call per element).
    transform: the function transform that an implementation may declare that it lacks, by the name that backends give
        it ("jit", "jvp", "vmap"); the mode's own name for a traced mode without one. Under "vmap" every array is a
        stack of `BATCH` examples, of which the case is the middle one.
    """

    name: str
    traced: bool = False
    autodiff: bool = False
    tier: Tier = Tier.FULL
    transform: str = ""

    @property
    def needs(self) -> frozenset[str]:
        """The capability without which a refusal is legitimate."""
        name = self.transform or (self.name if self.traced else "")
        return frozenset({f"transform:{name}"} if name else ())

    @property
    def batched(self) -> bool:
        return self.transform == "vmap"

    def thorough(self) -> Mode:
        """The mode with every case, also where each is a compilation, but not where each is a call per element."""
        return self if self.tier is Tier.FEW else replace(self, tier=Tier.FULL)


EAGER = Mode("eager")

# Examples in the batch of a mode under vmap: the case, and one on either side whose numbers must not reach it.
BATCH = 3


@dataclass(frozen=True)
class Derivative:
    """What is differentiated: sum(grad_output * function(*arrays)), with respect to arrays[i] for i in wrt. Without a
    grad_output it is taken as ones."""

    function: Callable[..., Any]
    arrays: Sequence[Any]
    wrt: Sequence[int]
    grad_output: Any = None

    @property
    def moving(self) -> tuple[Any, ...]:
        """The arrays of `wrt`."""
        return tuple(self.arrays[i] for i in self.wrt)

    def of_moving(self, *moving: Any) -> Any:
        """The function of the arrays of `wrt` alone."""
        inputs = list(self.arrays)
        for i, array in zip(self.wrt, moving, strict=True):
            inputs[i] = array
        return self.function(*inputs)

    @property
    def inputs(self) -> list[Any]:
        """The arrays, and grad_output if there is one."""
        return [*self.arrays, *([] if self.grad_output is None else [self.grad_output])]

    def at(self, inputs: Sequence[Any]) -> Derivative:
        """The same at other inputs."""
        arrays, rest = inputs[: len(self.arrays)], inputs[len(self.arrays) :]
        return replace(self, arrays=arrays, grad_output=rest[0] if rest else None)


class Harness:
    """The way in and out of one framework. Override `name`, `from_numpy` and `to_numpy`; the rest as it applies."""

    name: str = ""
    path: str = ""  # "module:object", where it was loaded so
    modes: tuple[Mode, ...] = (EAGER,)

    def on(self, device: str) -> Harness:
        """The same with its arrays on a device; ValueError where there is no such device."""
        raise ValueError(f"device: {self.name} has its arrays where it puts them; got {device!r}")

    def in_worker(self) -> None:
        """Called in each process that the suite starts, of which there is one for each core: for settings that a
        process of the user's should not be given."""

    def version(self) -> str:
        """Versions and settings that decide results, for the header of a report."""
        return ""

    def from_numpy(self, array: Array) -> Any:
        """The framework's array with the same values, dtype and shape, where possible with the same strides."""
        raise NotImplementedError

    def to_numpy(self, array: Any) -> Array:
        """The values of a result; bfloat16 as ml_dtypes.bfloat16."""
        raise NotImplementedError

    def owns(self, value: Any) -> bool:
        """Whether a result is this framework's array (a NumPy result from a torch backend is a bug)."""
        return True

    def call(self, function: Callable[..., Any], arrays: Sequence[Any], mode: Mode) -> Any:
        """function(*arrays), compiled or traced if the mode says so."""
        return function(*arrays)

    def gradient(self, of: Derivative, mode: Mode) -> tuple[Any, tuple[Any, ...]]:
        """The value of the function and its gradients, by the framework's own differentiation."""
        raise Unsupported(f"{self.name} has no automatic differentiation")

    def gradients(self, of: Derivative, upstream: Sequence[Any], mode: Mode) -> list[tuple[Any, ...]]:
        """The gradients for each of several upstream gradients; override it where they can go back, one after the
        other, through one forward pass."""
        return [self.gradient(replace(of, grad_output=each), mode)[1] for each in upstream]

    def forward_gradient(
        self, of: Derivative, value: Any, jvp: Callable[[int, Any], Any]
    ) -> tuple[Any, tuple[Any, ...]]:
        """The value, and gradients an element at a time. jvp(i, direction) is the derivative of the value where
        arrays[i] moves along a direction; along a unit vector and contracted with grad_output, it is one element."""
        seed = np.ones(value.shape) if of.grad_output is None else self.to_numpy(of.grad_output).astype(np.float64)
        gradients = []
        for i, like in zip(of.wrt, map(self.to_numpy, of.moving), strict=True):
            units = np.eye(like.size, dtype=like.dtype).reshape(like.size, *like.shape)
            changes = [jvp(i, unit) for unit in self.write_all(units)]
            moved = self.read_all(changes) if changes else np.zeros((0, *seed.shape))
            gradient = (seed * moved).reshape(like.size, seed.size).sum(axis=1)
            gradients.append(self.from_numpy(gradient.reshape(like.shape).astype(like.dtype)))
        return value, tuple(gradients)

    def write_all(self, arrays: Array) -> Sequence[Any]:
        """Those along the first axis, by one upload; override it where taking one out of an array costs more."""
        given = self.from_numpy(arrays)
        return [given[i] for i in range(len(arrays))]

    def read_all(self, arrays: Sequence[Any]) -> Array:
        """Arrays of one shape as one; override it where reading each would wait for a device."""
        return np.stack([self.to_numpy(array) for array in arrays])

    def hvp(self, of: Derivative, directions: Sequence[Any], mode: Mode) -> tuple[Any, ...]:
        """How the gradients change where the arrays of `wrt` move along `directions`: a product of the Hessian and a
        vector, by the framework's own differentiation of its gradient."""
        raise Unsupported(f"{self.name} has no second derivatives")

    def raised(self, error: BaseException) -> tuple[type[BaseException], ...]:
        """The classes of an error and of those that it was raised from: a compiler may wrap what a function raised."""
        return (type(error), *(self.raised(error.__cause__) if error.__cause__ is not None else ()))

    def has_no_rule(self, error: Exception, mode: Mode) -> bool:
        """Whether an error is how the framework says that a function has no rule for the mode's transform: a refusal,
        where the implementation does not declare that transform."""
        return isinstance(error, NotImplementedError)
