"""Sums and maxima over the processes of a group, inside of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import get_rank
from mindspore.ops import operations as P

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


class HostReduce(nn.Cell):
    """On CPU, where a graph can sum float32 and do nothing else: a sum gathers, and NumPy reduces.

    Each process writes its values into its own row of zeros, sixteen bits to a float32; the sum of the rows is exact,
    holds the bits of everybody's float64, and is reduced in the same order, hence to the same bits, on all of them.
    """

    def __init__(self, group: str, operation: str, dtype: str) -> None:
        super().__init__()
        rank, size = int(get_rank(group)), size_of(group)
        kind, pieces = np.dtype(dtype), np.dtype(dtype).itemsize // 2

        def encode(values: Array) -> Any:
            rows = np.zeros((size, *values.shape, pieces), np.float32)
            rows[rank] = np.ascontiguousarray(values)[..., None].view(np.uint16)
            return rows

        def decode(rows: Array) -> Any:
            values = np.ascontiguousarray(rows.astype(np.uint16)).view(kind)[..., 0]
            return values.sum(axis=0) if operation == "sum" else values.max(axis=0)

        self.encode = ops.Custom(encode, lambda shape: (size, *shape, pieces), lambda _: DTYPES["float32"], "pyfunc")
        self.decode = ops.Custom(decode, lambda shape: tuple(shape[1:-1]), lambda _: DTYPES[dtype], "pyfunc")
        self.call = P.AllReduce("sum", group)

    def construct(self, values: Tensor) -> Tensor:
        return self.decode(self.call(self.encode(values)))


def reduction(group: str | None, operation: str, dtype: str, cpu: bool) -> nn.Cell:
    """The cell that reduces tensors of ``dtype``, of at least one dimension, with "sum" or "max"."""
    if group is None:
        return Alone()
    return HostReduce(group, operation, dtype) if cpu else DeviceReduce(group, operation)
