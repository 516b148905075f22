"""What the suite must know of a framework: how arrays go in, how results come out, how a gradient is taken.

A harness never goes through the code under test. To add one, write a module in `unixent_conformance.harnesses` (or
anywhere, and pass the object to `unixent_conformance.run`) with an instance named `harness`; ten lines do:

    import numpy as np
    import torch

    from unixent_conformance.harness import Harness, Mode

    class TorchHarness(Harness):
        name = "torch"
        modes = (
            Mode("eager"),
            Mode("autograd", autodiff=True),
            Mode("compile", traced=True, autodiff=True, cases="core", transform="jit"),
        )

        def from_numpy(self, array):            # a copy: the suite compares its own arrays afterwards
            return torch.from_numpy(array.copy())

        def to_numpy(self, array):
            return array.detach().cpu().numpy()

        def gradient(self, function, arrays, wrt, upstream, mode):
            leaves = [a.clone().requires_grad_(i in wrt) for i, a in enumerate(arrays)]
            value = self.call(function, leaves, mode)
            return value, torch.autograd.grad(value, [leaves[i] for i in wrt], upstream)

        def call(self, function, arrays, mode):
            return torch.compile(function, fullgraph=True)(*arrays) if mode.traced else function(*arrays)

(bfloat16 comes and goes as an `ml_dtypes.bfloat16` array, which a real harness must convert.) Raise `Unsupported` where
the framework cannot hold a dtype: the case then counts as refused, not as a failure.

A function transform is one more mode. `Mode("vmap", traced=True, autodiff=True, cases="few", transform="vmap")` has
every array stacked with two neighbours, and `call` and `gradient` map over that axis; in a mode of forward
differentiation `gradient` gives the same numbers by another way. `curvature` says how a gradient is differentiated once
more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unixent_conformance.oracle import Array


class Unsupported(Exception):
    """The framework, not the implementation, has no such thing (a dtype, automatic differentiation)."""


@dataclass(frozen=True)
class Mode:
    """A way to run a case.

    traced: values cannot be read while the call runs, so an index out of range and an empty mean under
        on_empty="raise" give NaN instead of an error, and cases about errors are left out.
    autodiff: gradients come from the framework's differentiation of the loss instead of `value_and_grad`; cases that
        ask for no gradient are left out unless the mode is also traced.
    cases: where each case is dear (a compilation), "quick" runs a sixth of the catalogue, "lean" one question of each
        input among those, "core" a few cases of every feature, and "few" one small gradient of each. pytest's
        --unixent-thorough runs all of the catalogue, but for "few".
    transform: the function transform that an implementation may declare that it lacks, by the name that backends give
        it ("jit", "jvp", "vmap"); the mode's own name for a traced mode without one. Under "vmap" every array is a
        stack of `BATCH` examples, of which the case is the middle one.
    """

    name: str
    traced: bool = False
    autodiff: bool = False
    cases: Literal["all", "quick", "lean", "core", "few"] = "all"
    transform: str = ""

    @property
    def needs(self) -> frozenset[str]:
        """The capability without which a refusal is legitimate."""
        name = self.transform or (self.name if self.traced else "")
        return frozenset({f"transform:{name}"} if name else ())

    @property
    def batched(self) -> bool:
        return self.transform == "vmap"


EAGER = Mode("eager")

# Examples in the batch of a mode under vmap: the case, and one on either side whose numbers must not reach it.
BATCH = 3


class Harness:
    """The way in and out of one framework. Override `name`, `from_numpy` and `to_numpy`; the rest as it applies."""

    name: str = ""
    path: str = ""  # "module:object", where it was loaded so
    modes: tuple[Mode, ...] = (EAGER,)

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

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], wrt: Sequence[int], upstream: Any, mode: Mode
    ) -> tuple[Any, tuple[Any, ...]]:
        """function(*arrays) and d sum(upstream * function)/d arrays[i] for i in wrt, by the framework's own
        differentiation; upstream None means ones."""
        raise Unsupported(f"{self.name} has no automatic differentiation")

    def curvature(
        self,
        function: Callable[..., Any],
        arrays: Sequence[Any],
        wrt: Sequence[int],
        upstream: Any,
        along: Sequence[Any],
        mode: Mode,
    ) -> tuple[Any, ...]:
        """The derivative of the gradients with respect to arrays[i], i in wrt, where those arrays move along `along`:
        a product of the second derivative and a vector, by the framework's own differentiation of its gradient."""
        raise Unsupported(f"{self.name} has no second derivatives")

    def lacks(self, error: Exception, mode: Mode) -> bool:
        """Whether an error is the framework's own word that a function has no rule for the mode's transform: a loud
        no, and so a refusal, where the implementation does not declare that transform."""
        return isinstance(error, NotImplementedError)
