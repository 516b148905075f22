"""What a backend provides: `Backend`, and what its capabilities ask for besides."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from unixent.options import LossOptions, ParallelConfig
from unixent.protocol.description import Array, ArrayInfo, Capabilities, Device
from unixent.protocol.problem import LinearProblem, LossTerms, PositionStats, Problem, StatsProblem
from unixent.row_statistics import Along


@runtime_checkable
class Backend(Protocol):
    """What a backend provides. Everything is arithmetic on its own arrays; unixent raises the errors.

    A class index outside ``[0, C)`` that is not ``ignore_index`` must come out as NaN (value and gradient row),
    whatever was validated before: under a trace nothing could be.
    """

    name: str
    version: str

    @property
    def capabilities(self) -> Capabilities:
        """What is served, on the devices of this process: an attribute, or a property where it depends on them."""
        ...

    def devices(self) -> tuple[Device, ...]:
        """The devices that the framework sees, the one that it computes on by default first."""
        ...

    def owns(self, array: object) -> bool:
        """Whether ``array`` is an array of this framework (traced ones included)."""
        ...

    def describe(self, arrays: tuple[Array, ...]) -> tuple[ArrayInfo, ...]:
        """Shape, dtype, device and readability of all the arrays of a call, each of this framework.

        Must be cheap: it is asked on every call, and once, so that what holds for a whole call (that it is traced, or
        runs under a transform) is looked up once.
        """
        ...

    def asarray(self, value: np.ndarray[Any, Any], like: Array | None) -> Array:
        """Hand a NumPy array over, to the device of ``like`` where given; zero-copy where the framework allows. It has
        the machine's byte order, any strides, and may be read-only."""
        ...

    def broadcast_to(self, array: Array, shape: tuple[int, ...]) -> Array:
        """``array`` as one of that shape, by the rules of NumPy's broadcasting; a view where the framework has them."""
        ...

    def take_classes(self, array: Array, axis: int, num_classes: int) -> Array:
        """The first ``num_classes`` entries along ``axis``, differentiably; a view where the framework has them."""
        ...

    def pad_classes(self, array: Array, axis: int, num_classes: int) -> Array:
        """Zeros appended along ``axis`` until there are ``num_classes`` entries, which may be as many as there are."""
        ...

    def first_invalid_target(self, target: Array, num_classes: int, ignore_index: int) -> tuple[int, int] | None:
        """Flat C-order position and value of the first index out of range that is not ``ignore_index``."""
        ...

    def first_nonfinite(self, array: Array) -> int | None:
        """Flat C-order position of the first NaN or infinity."""
        ...

    def cross_entropy(self, problem: Problem) -> Array | LossTerms:
        """The loss, or its two terms when ``problem.return_terms``."""
        ...

    def value_and_grad(
        self, problem: Problem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """The loss and the gradient of ``sum(grad_output * loss)`` for each of ``wrt``: "logits", "target"."""
        ...

    def linear_cross_entropy(self, problem: LinearProblem) -> Array | LossTerms:
        """The fused linear form; asked only where ``capabilities.linear``."""
        ...

    def linear_value_and_grad(
        self, problem: LinearProblem, grad_output: Array | None, wrt: tuple[str, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        """The fused loss and its gradients for each of ``wrt``: "hidden", "classifier", "bias", "target"."""
        ...


class FastPathBackend(Backend, Protocol):
    """What a backend provides besides where it declares ``capabilities.fast_path``."""

    def try_fast_cross_entropy(self, logits: object, target: object, options: LossOptions) -> Array | None:
        """The loss of a call without weight, mask, normalizer or parallel, or None.

        Nothing has been checked but the options, and nothing is raised here: None, for whatever is not sure to be
        right, has the call checked and answered by `cross_entropy`.
        """
        ...


class StatsBackend(Backend, Protocol):
    """What a backend provides besides where it declares ``capabilities.position_stats``."""

    def position_stats(
        self, problem: StatsProblem, grad_output: PositionStats, wrt: tuple[str, ...]
    ) -> tuple[PositionStats, tuple[Array, ...]]:
        """The statistics, and the gradient of ``sum(grad_output * statistics)`` for each of ``wrt`` (scores alone).

        A position of weight 0 has 0, False and the index -1; one whose target is out of range, or that has no finite
        log-normaliser, has NaN, False and -1.
        """
        ...


class SparseBackend(Backend, Protocol):
    """What a backend provides besides where "sparse" is among ``capabilities.targets``.

    Its losses take problems with ``ids`` and a ``teacher`` then; `unixent.sparse_targets` has their arithmetic.
    """

    @property
    def along(self) -> Along:
        """The framework's functions of arrays."""
        ...


class TracingBackend(Backend, Protocol):
    """What a backend provides besides where it declares ``capabilities.traces_values``."""

    def traced_asarray(self, name: str, value: object, like: Array | None) -> Array | None:
        """A number that is a symbol under a trace (the size of an array), or a NumPy array, number or nested list while
        the framework's compiler traces it, whose dtype cannot be asked then; None where it is neither, and `asarray`
        takes it."""
        ...


class ParallelBackend(Backend, Protocol):
    """What a backend provides besides where it declares ``capabilities.parallel``. Groups are the framework's own."""

    def is_global(self, array: object, config: ParallelConfig) -> bool:
        """Whether ``array`` (logits or hidden states) is whole over ``config.mesh``, so that the adapter splits it,
        rather than this process's share."""
        ...

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """The values of a target or a mask, where it is `ArrayInfo.concrete`: integers exactly, others as float32."""
        ...

    def group_size(self, group: Any) -> int:
        """How many processes a group has."""
        ...

    def all_gather(self, row: tuple[int, ...], group: Any) -> list[tuple[int, ...]]:
        """The rows of all processes of a group, in the order of their ranks; the same row for each where one program
        runs on all of them."""
        ...

    def is_single_program(self) -> bool:
        """Whether a program is being traced that every process will run, so that there is nothing to compare: a tracer
        need not see through the digests that processes otherwise exchange."""
        ...
