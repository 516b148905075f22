"""The operands of a call, and what is static of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindspore import Tensor, bfloat16, float32
from mindspore.communication import get_rank
from mindspore.ops import operations

from unixent.classes import P, take_share
from unixent.options import LossOptions
from unixent.protocol import Backend, LinearProblem, Problem, Sharding, Teacher
from unixent_mindspore.kernel import ABSENT, DTYPES, KernelSpec

# What every cell takes, in this order, `ABSENT` for what there is not. The fused linear form has its hidden states
# where the logits are here, a sparse target its probabilities (or their logarithms) where the target is; selected is
# of statistics of positions.
INPUTS = ("logits", "classifier", "bias", "target", "weight", "mask", "normalizer", "target.ids", "selected")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: Any) -> str:
    """The NumPy-style name of a MindSpore dtype."""
    return _NAMES.get(dtype) or str(dtype).lower()


def take_classes(array: Tensor, axis: int, num_classes: int) -> Tensor:
    """The first classes, in eager and compiled code. MindSpore differentiates this slice twice, and no other as far."""
    if array.dtype == bfloat16:
        # The derivative of a slice takes no bfloat16 on a CPU; float32 holds all of it.
        return take_classes(array.astype(float32), axis, num_classes).astype(bfloat16)
    end = array.shape[:axis] + (num_classes,) + array.shape[axis + 1 :]
    return operations.StridedSlice()(array, (0,) * array.ndim, end, (1,) * array.ndim)


def pad_classes(array: Tensor, axis: int, num_classes: int) -> Tensor:
    """The array with zeros for the classes that are missing of ``num_classes``, in eager and compiled code."""
    missing = num_classes - array.shape[axis]
    if missing == 0:
        return array
    shape = array.shape[:axis] + (missing,) + array.shape[axis + 1 :]
    return operations.Concat(axis)((array, operations.Zeros()(shape, array.dtype)))


def existing_share(backend: Backend, problem: P) -> tuple[P, int]:
    """The problem with what exists of this process's share of the classes, and how many those are."""
    if problem.sharding is None or problem.sharding.model_group is None:
        return problem, problem.num_classes
    rank = int(get_rank(problem.sharding.model_group))
    share = take_share(backend, problem, rank)
    assert share.sharding is not None
    return share, share.sharding.classes_per_rank[rank]


@dataclass(frozen=True, slots=True)
class LossSpec:
    """A problem without its arrays: hashable, and independent of batch shapes, so that one cell serves them all.

    ``dtypes`` names the dtype of each of `INPUTS`, None for what there is not. Of a compiled call, ``no_positions``
    says that the batch is empty, and ``signature`` what the processes of a split loss compare (see `unixent.sharding`).
    """

    options: LossOptions
    axis: int
    num_classes: int
    target_kind: str
    teacher: Teacher | None
    acc_dtype: str
    result_dtype: str
    return_terms: bool
    check_empty: bool
    linear: bool
    chunk: int | None
    dtypes: tuple[str | None, ...]
    sharding: Sharding | None
    no_positions: bool
    signature: tuple[int, int, int] | None

    @classmethod
    def of(
        cls,
        problem: Problem | LinearProblem,
        dtypes: tuple[str | None, ...],
        no_positions: bool = False,
        signature: tuple[int, int, int] | None = None,
    ) -> LossSpec:
        linear = isinstance(problem, LinearProblem)
        return cls(
            problem.options,
            problem.axis if isinstance(problem, Problem) else len(problem.hidden.shape) - 1,
            problem.num_classes,
            problem.target_kind,
            problem.teacher,
            problem.acc_dtype,
            problem.result_dtype,
            problem.return_terms,
            problem.check_empty,
            linear,
            problem.chunk if isinstance(problem, LinearProblem) else None,
            dtypes,
            problem.sharding,
            no_positions,
            signature,
        )

    @property
    def per_position(self) -> bool:
        """Whether the result has one loss per position."""
        return self.options.reduction == "none" and not self.return_terms

    @property
    def columns(self) -> tuple[int, ...]:
        """What the shape of a result has after that of the positions."""
        return ()

    @property
    def saves_gradient(self) -> bool:
        """Whether the gradient is formed with the loss: of a split loss, unless it is a sum over many upstream ones."""
        return self.sharding is not None and not (self.linear and self.per_position)

    @property
    def wrt(self) -> tuple[int, ...]:
        """Which of `INPUTS` have a gradient."""
        present = tuple(i for i in range(3) if self.dtypes[i] is not None)
        return present if self.target_kind == "index" else (*present, 3)

    @property
    def wrt_names(self) -> tuple[str, ...]:
        """Their public names."""
        return tuple("hidden" if self.linear and i == 0 else INPUTS[i] for i in self.wrt)

    def kernel(self, dtype: str) -> KernelSpec:
        """What the pass over the logits has to know, in the arithmetic of ``dtype``."""
        return KernelSpec(
            acc_dtype=dtype,
            axis=self.axis,
            num_classes=self.num_classes,
            indexed=self.target_kind == "index",
            label_smoothing=self.options.label_smoothing,
            z_loss=self.options.z_loss,
            transform=self.options.transform(dtype),
            has_weight=self.dtypes[4] is not None,
        )


def operands(problem: Problem | LinearProblem, on_host: bool) -> tuple[tuple[Tensor, ...], LossSpec]:
    """The arrays of an eager problem in the order of `INPUTS`, and its static side."""
    normalizer = problem.normalizer
    if isinstance(normalizer, float):
        normalizer = Tensor(normalizer, DTYPES["float64"])
    shared = (problem.target, problem.weight, problem.mask, normalizer, problem.ids, None)
    if isinstance(problem, Problem):
        inputs = (problem.logits, None, None, *shared)
        positions = problem.logits.shape[: problem.axis] + problem.logits.shape[problem.axis + 1 :]
    else:
        inputs = (problem.hidden, problem.classifier, problem.bias, *shared)
        positions = problem.hidden.shape[:-1]
    dtypes = tuple(None if item is None else dtype_name(item.dtype) for item in inputs)
    # NumPy takes a batch without a position as it is; collectives and callbacks do not.
    calls_back = not on_host or problem.teacher is not None
    spec = LossSpec.of(problem, dtypes, no_positions=calls_back and 0 in positions)
    return tuple(ABSENT if item is None else item for item in inputs), spec
