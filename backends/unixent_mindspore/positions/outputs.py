"""The outputs of statistics, cut from the one tensor that they are computed and differentiated in."""

from __future__ import annotations

from typing import Any

from mindspore import Tensor, float64, nn
from mindspore.ops import operations as P

from unixent.statistics import DIFFERENTIABLE
from unixent_mindspore.kernel import DTYPES
from unixent_mindspore.positions.problem import StatsSpec


class Outputs(nn.Cell):
    """P + (M,) -> each output in its shape and dtype."""

    def __init__(self, spec: StatsSpec) -> None:
        super().__init__()
        self.starts, self.stops, self.wide = zip(*[column[1:4] for column in spec.layout], strict=True)
        self.graded = tuple(column.name in DIFFERENTIABLE for column in spec.layout)
        self.dtypes = tuple(DTYPES[column.dtype] for column in spec.layout)
        self.slice, self.reshape, self.cast = P.StridedSlice(), P.Reshape(), P.Cast()
        self.constant, self.zeros = P.StopGradient(), P.Zeros()

    def construct(self, packed: Tensor) -> Any:
        positions, ndim = packed.shape[:-1], packed.ndim
        outputs: Any = ()
        for i in range(len(self.dtypes)):
            begin, end = (0,) * (ndim - 1) + (self.starts[i],), positions + (self.stops[i],)
            shape = positions
            if self.wide[i]:
                shape = positions + (self.stops[i] - self.starts[i],)
            if 0 in shape:
                # MindSpore ends the process where it differentiates an empty slice.
                part = self.zeros(shape, packed.dtype)
            else:
                part = self.reshape(self.slice(packed, begin, end, (1,) * ndim), shape)
            if not self.graded[i]:
                part = self.constant(part)
            outputs = outputs + (self.cast(part, self.dtypes[i]),)
        return outputs


class Statistics(nn.Cell):
    """The outputs of the `INPUTS`."""

    def __init__(self, spec: StatsSpec, cell: Any) -> None:
        super().__init__()
        self.cell, self.outputs = cell, Outputs(spec)

    def construct(self, *inputs: Tensor) -> Any:
        return self.outputs(self.cell(*inputs))


class StatisticsAndGrads(nn.Cell):
    """The outputs, and the gradients of the first four `INPUTS` under the upstream gradients of the `GRADED`."""

    def __init__(self, spec: StatsSpec, cell: Any) -> None:
        super().__init__()
        self.cell, self.outputs = cell, Outputs(spec)
        fields = {name: i for i, name in enumerate(DIFFERENTIABLE)}
        # For each output the place of its upstream gradient, -1 where it has none.
        self.places = tuple(fields.get(column.name, -1) for column in spec.layout)
        self.widths = tuple(column.stop - column.start for column in spec.layout)
        self.axis = spec.axis
        self.zeros, self.ones, self.cast, self.concat = P.Zeros(), P.Ones(), P.Cast(), P.Concat(-1)
        self.reshape = P.Reshape()

    def packed(self, grad_output: Any, positions: tuple[int, ...]) -> Tensor:
        parts: Any = ()
        for i in range(len(self.places)):
            shape, place = positions + (self.widths[i],), self.places[i]
            part = self.zeros(shape, float64)
            if place >= 0 and grad_output is None:
                part = self.ones(shape, float64)
            if place >= 0 and grad_output is not None and grad_output[place] is not None:
                part = self.reshape(self.cast(grad_output[place], float64), shape)
            parts = parts + (part,)
        return self.concat(parts)

    def construct(self, grad_output: Any, *inputs: Tensor) -> Any:
        shape = inputs[0].shape
        upstream = self.packed(grad_output, shape[: self.axis] + shape[self.axis + 1 :])
        packed, grads = self.cell(upstream, *inputs)
        return self.outputs(packed), grads
