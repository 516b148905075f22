"""The processes of a split loss compare their calls, inside of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, float64, int64, nn, ops

from unixent.errors import ShapeError, UnixentError
from unixent.protocol import Sharding
from unixent.sharding import model_error, token_error
from unixent_mindspore.collectives import Array, HostGather


class Stacked(nn.Cell):
    """The array of one process, stacked."""

    def construct(self, values: Tensor) -> Tensor:
        return values.reshape((1, *values.shape))


class Agreement(nn.Cell):
    """The first of the two rows of integers of `unixent.sharding`, sent by the graph: 0, or an error on all processes.

    A graph is compiled for one call, so the rows are its constants: ``signature`` has the call, positions and classes.
    """

    def __init__(self, sharding: Sharding, signature: tuple[int, int, int]) -> None:
        super().__init__()

        def error_of(rows: Array) -> UnixentError | None:
            error = model_error([tuple(map(int, row)) for row in rows])
            if error is None and len(set(rows[:, 3])) > 1:
                error = ShapeError(
                    "parallel: expected as many classes on every process of the model group in compiled code on the "
                    f"mindspore backend; got {tuple(map(int, rows[:, 3]))}"
                )
            return error

        def condense(rows: Array) -> Any:
            return np.array([error_of(rows) is not None, signature[0], rows[:, 3].sum()], np.int64)

        def judge(rows: Array, tokens: Array) -> Any:
            error = error_of(rows) or token_error([tuple(map(int, row)) for row in tokens])
            if error is not None:
                raise error
            return np.zeros(1)

        self.row = Tensor(np.array([0, *signature]), int64)
        self.model = Stacked() if sharding.model_group is None else HostGather(sharding.model_group, "int64")
        self.token = Stacked() if sharding.token_group is None else HostGather(sharding.token_group, "int64")
        self.condense = ops.Custom(condense, lambda _: (3,), lambda _: int64, "pyfunc")
        self.judge = ops.Custom(judge, lambda *_: (1,), lambda *_: float64, "pyfunc")

    def construct(self) -> Tensor:
        rows = self.model(self.row)
        return self.judge(rows, self.token(self.condense(rows)))
