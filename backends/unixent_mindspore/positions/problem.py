"""What is static about statistics, and the one tensor that all of their outputs lie in."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from mindspore import Tensor

from unixent.protocol import PositionStats, StatsProblem
from unixent.row_statistics import INDICES
from unixent.statistics import DIFFERENTIABLE
from unixent_mindspore.kernel import ABSENT
from unixent_mindspore.logits.problem import LossSpec, dtype_name, operands

_DTYPES = {**dict.fromkeys(INDICES, "int64"), "correct": "bool"}


class Column(NamedTuple):
    """An output: its columns of the one tensor, whether its own shape has them as an axis, and its dtype."""

    name: str
    start: int
    stop: int
    is_wide: bool
    dtype: str


@dataclass(frozen=True, slots=True)
class StatsSpec(LossSpec):
    """A `StatsProblem` without its arrays, as the `LossSpec` of its loss.

    All outputs lie side by side in one tensor P + (M,), so that they are differentiated as a loss is. It is float64,
    which holds what was computed in float32, and indices, as they are.

    Attributes:
        outputs, k: those of the problem.
        num_selected: how many classes ``selected`` has for each position.
        stats_dtype: the dtype of the floating outputs.
    """

    outputs: tuple[str, ...]
    k: int
    num_selected: int
    stats_dtype: str

    @classmethod
    def of_stats(cls, problem: StatsProblem, loss: LossSpec) -> StatsSpec:
        """The spec, from that of its loss."""
        given: dict[str, Any] = {field.name: getattr(loss, field.name) for field in fields(LossSpec)}
        selected = problem.selected
        given["dtypes"] = (*loss.dtypes[:8], None if selected is None else dtype_name(selected.dtype))
        given["result_dtype"] = "float64"
        width = 0 if selected is None else int(selected.shape[-1])
        outputs = tuple(dict.fromkeys(problem.outputs))
        return cls(**given, outputs=outputs, k=problem.k, num_selected=width, stats_dtype=loss.result_dtype)

    @property
    def layout(self) -> tuple[Column, ...]:
        """The outputs, in the order in which they lie there."""
        widths = {"selected_log_prob": self.num_selected, "top_log_prob": self.k, "top_index": self.k}
        columns, start = [], 0
        for name in self.outputs:
            stop = start + widths.get(name, 1)
            columns.append(Column(name, start, stop, name in widths, _DTYPES.get(name, self.stats_dtype)))
            start = stop
        return tuple(columns)

    @property
    def graded(self) -> tuple[Column, ...]:
        """Those that have a derivative."""
        return tuple(column for column in self.layout if column.name in DIFFERENTIABLE)

    @property
    def saves_gradient(self) -> bool:
        """Each output has an upstream gradient of its own: the gradient is formed when they are there."""
        return False

    @property
    def columns(self) -> tuple[int, ...]:
        return (max(column.stop for column in self.layout),)


def stats_operands(problem: StatsProblem) -> tuple[tuple[Tensor, ...], StatsSpec]:
    """The arrays of an eager problem, and its static side."""
    inputs, loss = operands(problem.call, True)
    selected = ABSENT if problem.selected is None else problem.selected
    return (*inputs[:8], selected), StatsSpec.of_stats(problem, loss)


def named(spec: StatsSpec, values: tuple[Any, ...]) -> PositionStats:
    """The outputs by name."""
    return PositionStats(**dict(zip(spec.outputs, values, strict=True)))
