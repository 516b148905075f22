"""The contract between unixent and a backend: for authors of plug-ins.

A backend is a module-level object, registered under its name and under the top-level module of the arrays it takes
(see `unixent.registry`)::

    [project.entry-points."unixent.backends"]
    mylib = "unixent_mylib:backend"

    [project.entry-points."unixent.arrays"]
    mylib = "unixent_mylib:backend"

unixent validates the call (options, shapes, dtypes, devices, capabilities) and raises every error; a backend holds
arithmetic only. It receives a `Problem` in which every array is its own and every option is normalised, and it returns
its own array. What the loss means is in ``docs/semantics.md``; run ``unixent conformance --backend mylib`` to learn,
case by case, whether yours matches.

Every backend provides `Backend`. What it declares in its capabilities asks for more: "sparse" among its targets for
`SparseBackend`, ``fast_path`` for `FastPathBackend`, ``position_stats`` for `StatsBackend`, ``traces_values`` for
`TracingBackend`, ``parallel`` for `ParallelBackend`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from unixent.logit_transform import LogitTransform
from unixent.options import LossOptions, ParallelConfig
from unixent.row_statistics import Along

Array = Any  # whatever the framework calls its array


class LossTerms(NamedTuple):
    """The two sums behind a mean: what gradient accumulation and data parallelism add up.

    ``numerator`` is the sum of the positions' losses in nats and ``denominator`` the sum of their weights, both 0-d
    arrays of the backend; the mean is ``numerator / denominator``.
    """

    numerator: Array
    denominator: Array


class PositionStats(NamedTuple):
    """What is known of each position, of shape P unless said; None for what was not asked.

    With x' the transformed logits, p = softmax(x') and L_c = -log p_c, over the classes that exist:

    Attributes:
        loss: the unreduced loss, with all of its options.
        log_prob: -L_y, of the target.
        entropy: sum_c p_c L_c, in nats.
        logsumexp: log sum_c exp x'_c.
        selected_log_prob: P + (K,), -L_c of the classes ``selected``.
        log_sum_sq: log sum_c p_c^2.
        max_prob: the largest p_c.
        prediction: its class, int64; the lowest of equal ones.
        correct: bool, whether that is the target.
        rank: int64, how many classes come before the target: those of larger x', and equal ones of lower index.
        top_log_prob, top_index: P + (k,), the k largest -L_c in order, and their classes, int64.
        mean_logit: the mean of x'_c.

    The first five are differentiable.
    """

    loss: Array = None
    log_prob: Array = None
    entropy: Array = None
    logsumexp: Array = None
    selected_log_prob: Array = None
    log_sum_sq: Array = None
    max_prob: Array = None
    prediction: Array = None
    correct: Array = None
    rank: Array = None
    top_log_prob: Array = None
    top_index: Array = None
    mean_logit: Array = None


class ArrayInfo(NamedTuple):
    """What the checks need to know of an array, without touching its values.

    Attributes:
        shape: its shape; entries may be symbolic under a trace.
        dtype: canonical NumPy-style name: "float16", "bfloat16", "float32", "float64", "int8", ..., "uint64", "bool".
        device: where it lives, as the framework prints it; compared between the arguments of one call. Empty where it
            is bound to none (a traced array, an array that moves to where the others are).
        readable: its values can be read without stalling: an eager array in host memory. A 0-d one converts by `float`.
        concrete: it has values at all; False under a trace.
        requires_grad: the framework knows that a gradient of this array is requested.
        layout: empty for an array whose elements all lie in memory; else how the framework calls it ("sparse_coo",
            "nested", ...): such an array is refused.
    """

    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    readable: bool = True
    concrete: bool = True
    requires_grad: bool = False
    layout: str = ""


class Device(NamedTuple):
    """A device, and what the loss is to expect there.

    Attributes:
        name: as the framework prints it.
        kernel: what computes the pass over the logits there, for people ("native, avx2", "Triton", "XLA").
        batch_invariant: value and gradient of a position have the same bits whatever the other positions are, in every
            form of the loss.
    """

    name: str
    kernel: str
    batch_invariant: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do, as data: the checks, the docs table and the suite's expectations are made from it.

    Attributes:
        dtypes: dtypes of logits that are taken.
        targets: kinds of target that are taken: "index", "probability", "sparse" (see `SparseBackend`).
        transforms: names of the framework's transforms that the loss goes through: "grad", "jit", "vmap", "jvp", ...
        linear: `unixent.linear_cross_entropy` is served.
        parallel: a `ParallelConfig` of degree above 1 is served.
        fast_path: calls without arrays beside logits and target are offered to the backend before they are checked.
        position_stats: `unixent.position_stats` is served, and with ``linear`` `unixent.linear_position_stats`.
        parallel_targets: kinds of target that are taken where positions or classes are split over processes.
        parallel_position_stats: so they are where positions or classes are split over processes.
        traces_values: what is no array of the framework in a program that it traces (symbolic sizes, NumPy arrays and
            lists whose dtype cannot be asked there) is the backend's to hand over.
    """

    dtypes: frozenset[str]
    targets: frozenset[str] = frozenset({"index", "probability"})
    transforms: frozenset[str] = frozenset()
    linear: bool = False
    parallel: bool = False
    fast_path: bool = False
    position_stats: bool = False
    parallel_position_stats: bool = False
    parallel_targets: frozenset[str] = frozenset({"index", "probability"})
    traces_values: bool = False


@dataclass(frozen=True, slots=True)
class Sharding:
    """How the arrays of this process fit into the whole.

    Attributes:
        model_group: the processes that share the classes, or None where they are all here.
        token_group: the processes that share the positions, or None.
        classes_per_rank: how many classes each process of the model group holds, in the order of their ranks.
        mesh: None, or the framework's own mesh of devices over which the arrays of the problem are still whole; the
            adapter splits them then.
        context_parallel: how many parts of the token group, the last of its axes, are parts of the sequence.
    """

    model_group: Any | None
    token_group: Any | None
    classes_per_rank: tuple[int, ...]
    mesh: Any | None = None
    context_parallel: int = 1

    @property
    def num_classes(self) -> int:
        """How many classes the arrays of all processes hold together; `LossProblem.num_classes` of them exist."""
        return sum(self.classes_per_rank)

    def vocab_start(self, rank: int) -> int:
        """Index of the first class that the process ``rank`` of the model group holds."""
        return sum(self.classes_per_rank[:rank])

    def existing(self, num_classes: int) -> Sharding:
        """The same of the first ``num_classes`` classes alone: (4, 4, 4) for 5 of them is (4, 1, 0)."""
        rest = [max(0, num_classes - self.vocab_start(rank)) for rank in range(len(self.classes_per_rank))]
        return replace(self, classes_per_rank=tuple(map(min, self.classes_per_rank, rest)))


class Teacher(NamedTuple):
    """What is static about a sparse target: what becomes of the classes beyond its K ("drop", "renormalize", "bucket"),
    and whether its numbers are logarithms."""

    tail: str
    is_log: bool


@dataclass(slots=True, kw_only=True)
class LossProblem:
    """What a logits-level and a fused linear problem share; every array belongs to the backend.

    Attributes:
        target: class indices of shape P, probabilities of the shape of logits, or a `unixent.TopK`'s probabilities or
            log-probabilities, P + (K,).
        weight: class weights (C,), or None.
        mask: position weights P (bool, integer or floating), or None.
        normalizer: replaces the denominator of "mean": a Python float, a 0-d array, or None.
        options: the validated options.
        num_classes: C, how many classes exist, of the whole vocabulary where that is split. The arrays hold as many,
            but where they are split over a model group: there ``sharding.num_classes`` may be larger, and what lies
            beyond C is padding of probability 0 and gradient 0 (see `unixent.classes`).
        target_kind: "index", "probability" or "sparse".
        ids: the classes of a sparse target, P + (K,), ``ignore_index`` where they are padding; or None.
        teacher: what is static about a sparse target, or None.
        acc_dtype: "float32" or "float64": the dtype of every exp, log and sum.
        transform: what scale, softcap and temperature make of the logits first.
        result_dtype: dtype that the finished result is rounded to.
        return_terms: return `LossTerms` instead of the reduced loss.
        all_targets_valid: the class indices have been read, and each is a class other than ignore_index, so that a
            backend need not look again; False where that is not known.
        check_empty: raise `unixent.validation.empty_mean` when the mean's denominator reads 0.
        sharding: how the problem is split over processes, or None. Logits and probabilities then hold this process's
            classes and positions, while class indices and weight are those of the whole vocabulary.
    """

    target: Array
    weight: Array | None = None
    mask: Array | None = None
    normalizer: Array | float | None = None
    options: LossOptions
    num_classes: int
    target_kind: str
    ids: Array | None = None
    teacher: Teacher | None = None
    acc_dtype: str
    transform: LogitTransform
    result_dtype: str
    return_terms: bool = False
    all_targets_valid: bool = False
    check_empty: bool = False
    sharding: Sharding | None = None


@dataclass(slots=True, kw_only=True)
class Problem(LossProblem):
    """One call of `unixent.cross_entropy`: ``logits`` with the classes along ``axis`` (normalised, >= 0)."""

    logits: Array
    axis: int


@dataclass(slots=True, kw_only=True)
class LinearProblem(LossProblem):
    """One call of `unixent.linear_cross_entropy`.

    ``hidden`` is P + (D,), ``classifier`` (C, D), ``bias`` (C,) or None; ``chunk`` is the number of positions whose
    logits may exist at a time, or None for the backend's choice.
    """

    hidden: Array
    classifier: Array
    bias: Array | None = None
    chunk: int | None = None


@dataclass(slots=True, kw_only=True)
class StatsProblem:
    """One call of `unixent.position_stats` or `unixent.linear_position_stats`.

    Attributes:
        call: the positions, as the problem of their unreduced loss. Its target holds zeros where none was given, and
            nothing was asked that needs one.
        outputs: which fields of `PositionStats` are asked for.
        selected: class indices P + (K,) for ``selected_log_prob``, or None. Where one is ``ignore_index`` the result
            is 0; where it is no other class, NaN.
        k: how many classes ``top_log_prob`` and ``top_index`` have.
    """

    call: Problem | LinearProblem
    outputs: tuple[str, ...]
    selected: Array | None = None
    k: int = 0


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
        """Hand a NumPy array over, to the device of ``like`` where given; zero-copy where the framework allows."""
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
