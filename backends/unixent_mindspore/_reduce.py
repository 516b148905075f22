"""Sums and maxima over the processes of a group, inside of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, float64, int64, nn, ops
from mindspore.communication import get_rank
from mindspore.ops import operations as P

from unixent import sharding
from unixent.errors import ShapeError, UnixentError
from unixent.protocol import Sharding
from unixent_mindspore._groups import size_of
from unixent_mindspore._plan import DTYPES, Array


class Alone(nn.Cell):
    """Of one process."""

    def construct(self, values: Tensor) -> Tensor:
        return values


class DeviceReduce(nn.Cell):
    """By the collective of the accelerator."""

    def __init__(self, group: str, operation: str) -> None:
        super().__init__()
        self.call = P.AllReduce(operation, group)

    def construct(self, values: Tensor) -> Tensor:
        return self.call(values)


class HostGather(nn.Cell):
    """On CPU, where a graph can sum float32 and do nothing else: the arrays of all processes, stacked, by a sum.

    Each process writes its values into its own row of zeros, sixteen bits to a float32; the sum of the rows is exact
    and holds everybody's bits. ``finish`` is what NumPy does with the stack.
    """

    def __init__(self, group: str, dtype: str, finish: Callable[[Array], Array] = np.asarray) -> None:
        super().__init__()
        rank, size = int(get_rank(group)), size_of(group)
        kind, pieces = np.dtype(dtype), np.dtype(dtype).itemsize // 2
        kept = 0 if finish is np.asarray else 1

        def encode(values: Array) -> Any:
            rows = np.zeros((size, *values.shape, pieces), np.float32)
            rows[rank] = np.ascontiguousarray(values)[..., None].view(np.uint16)
            return rows

        def decode(rows: Array) -> Any:
            return finish(np.ascontiguousarray(rows.astype(np.uint16)).view(kind)[..., 0])

        self.encode = ops.Custom(encode, lambda shape: (size, *shape, pieces), lambda _: DTYPES["float32"], "pyfunc")
        self.decode = ops.Custom(decode, lambda shape: tuple(shape[kept:-1]), lambda _: DTYPES[dtype], "pyfunc")
        self.call = P.AllReduce("sum", group)

    def construct(self, values: Tensor) -> Tensor:
        return self.decode(self.call(self.encode(values)))


def total(rows: Array) -> Array:
    """The sum in the same order, hence to the same bits, on all processes."""
    return np.asarray(rows.sum(axis=0))


def largest(rows: Array) -> Array:
    return np.asarray(rows.max(axis=0))


class Stacked(nn.Cell):
    """The array of one process, stacked."""

    def construct(self, values: Tensor) -> Tensor:
        return values.reshape((1, *values.shape))


class Agreement(nn.Cell):
    """The first of the two rows of integers of `unixent.sharding`, sent by the graph: 0, or an error on all processes.

    A graph is compiled for one call, so the rows are its constants: ``facts`` are the call, positions and classes.
    """

    def __init__(self, split: Sharding, facts: tuple[int, int, int]) -> None:
        super().__init__()

        def error_of(rows: Array) -> UnixentError | None:
            found = sharding.model_error([tuple(map(int, row)) for row in rows])
            if found is None and len(set(rows[:, 3])) > 1:
                found = ShapeError(
                    "parallel: expected as many classes on every process of the model group in compiled code on the "
                    f"mindspore backend; got {tuple(map(int, rows[:, 3]))}"
                )
            return found

        def condense(rows: Array) -> Any:
            return np.array([error_of(rows) is not None, facts[0], rows[:, 3].sum()], np.int64)

        def judge(rows: Array, tokens: Array) -> Any:
            error = error_of(rows) or sharding.token_error([tuple(map(int, row)) for row in tokens])
            if error is not None:
                raise error
            return np.zeros(1)

        self.row = Tensor(np.array([0, *facts]), int64)
        self.model = Stacked() if split.model_group is None else HostGather(split.model_group, "int64")
        self.token = Stacked() if split.token_group is None else HostGather(split.token_group, "int64")
        self.condense = ops.Custom(condense, lambda _: (3,), lambda _: int64, "pyfunc")
        self.judge = ops.Custom(judge, lambda *_: (1,), lambda *_: float64, "pyfunc")

    def construct(self) -> Tensor:
        rows = self.model(self.row)
        return self.judge(rows, self.token(self.condense(rows)))


def reduction(group: str | None, operation: str, dtype: str, cpu: bool) -> nn.Cell:
    """The cell that reduces tensors of ``dtype``, of at least one dimension, with "sum" or "max"."""
    if group is None:
        return Alone()
    return HostGather(group, dtype, total if operation == "sum" else largest) if cpu else DeviceReduce(group, operation)
