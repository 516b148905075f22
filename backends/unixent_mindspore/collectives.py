"""Groups of processes by their MindSpore names, and reductions over them: eagerly, and inside of a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import GlobalComm, create_group, get_group_size, get_rank
from mindspore.mint import distributed
from mindspore.ops import operations as P

from unixent.errors import BackendError
from unixent.options import ParallelConfig

Array = np.ndarray[Any, Any]
START = "start the processes with msrun and call mindspore.communication.init() first"


def group_size(name: Any) -> int:
    """How many processes a group has."""
    if not isinstance(name, str):
        raise BackendError(f"parallel: expected the name of a MindSpore group, as of create_group; got {name!r}")
    if not GlobalComm.INITED:
        raise BackendError(f"parallel: expected initialised communication for group {name!r}; {START}")
    try:
        return int(get_group_size(name))
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"parallel: expected a MindSpore group that this process is in; got {name!r}") from error


def refuse_automatic_parallel() -> None:
    """In the modes that split one program by themselves, tensors are global and no process is addressed."""
    mode = str(ms.get_auto_parallel_context("parallel_mode"))
    if mode in ("semi_auto_parallel", "auto_parallel"):
        raise BackendError(
            f"parallel: expected tensors that each process has its own share of; got parallel_mode={mode!r}, in which "
            "MindSpore splits whole tensors by itself (and on CPU refuses to). Use stand_alone or data_parallel mode"
        )


def all_gather(row: tuple[int, ...], name: str) -> list[tuple[int, ...]]:
    """The rows of all processes of a group, in the order of their ranks."""
    size = group_size(name)
    own = np.array(row, np.int64)
    if ms.get_context("device_target") == "CPU":
        rows = _gather_on_cpu(own, name, size)
    else:
        rows = P.AllGather(name)(Tensor(own)).asnumpy().reshape(size, len(row))
    return [tuple(map(int, item)) for item in rows]


def _gather_on_cpu(own: Array, name: str, size: int) -> Array:
    """The arrays of all processes, stacked."""
    flat = np.ascontiguousarray(own).reshape(-1)
    parts = [Tensor(np.zeros_like(flat)) for _ in range(size)]
    distributed.all_gather(parts, Tensor.from_numpy(flat), name)
    return np.stack([part.asnumpy().reshape(own.shape) for part in parts])


class HostGroup:
    """A group as the NumPy backend wants it: a group of processes that reduce arrays in host memory."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.size = group_size(name)
        self.rank = int(distributed.get_rank(name))

    def all_reduce(self, values: Array, operation: str) -> Array:
        if not values.size:
            return values
        if values.dtype == np.float32:
            tensor = Tensor.from_numpy(np.array(values, order="C"))
            distributed.all_reduce(tensor, operation.lower(), self._name)
            reduced: Array = tensor.asnumpy()
            return reduced
        # MindSpore gathers float64 on CPU, but does not reduce it.
        gathered = _gather_on_cpu(values, self._name, self.size)
        return np.asarray(gathered.sum(axis=0) if operation == "SUM" else gathered.max(axis=0))

    def all_gather(self, row: tuple[int, ...]) -> list[tuple[int, ...]]:
        return all_gather(row, self._name)


def grid(config: Any) -> ParallelConfig:
    """The config with its groups: those that it names, or, where it names none, those of a grid of all processes.

    The grid is MindSpore's own: processes with the same positions are neighbours, so that process r holds the part
    ``r // model_parallel`` of the positions and ``r % model_parallel`` of the classes.
    """
    given = ParallelConfig.of(config)
    tokens, parts = given.data_parallel * given.context_parallel, given.model_parallel
    if given.degree == 1 or given.model_group is not None or given.token_group is not None:
        return given
    world = group_size(GlobalComm.WORLD_COMM_GROUP)
    if world != given.degree:
        raise BackendError(
            f"parallel_config: expected groups, or as many processes as data_parallel * context_parallel * "
            f"model_parallel = {given.degree}; got {world} processes and no group"
        )
    row, column = divmod(int(get_rank()), parts)
    return ParallelConfig(
        given.data_parallel,
        parts,
        given.context_parallel,
        model_group=_group("model", [row * parts + each for each in range(parts)]),
        token_group=_group("token", [each * parts + column for each in range(tokens)]),
    )


_made: dict[tuple[int, ...], str] = {}


def _group(axis: str, ranks: list[int]) -> str | None:
    """The group of these processes, made once."""
    if len(ranks) == 1:
        return None
    name = f"unixent-{axis}-{'-'.join(map(str, ranks))}"
    if tuple(ranks) not in _made:
        create_group(name, ranks)
        _made[tuple(ranks)] = name
    return _made[tuple(ranks)]


class SingleProcess(nn.Cell):
    """The reduction of one process's values: themselves."""

    def construct(self, values: Tensor) -> Tensor:
        return values


class DeviceReduce(nn.Cell):
    """A reduction by the collective of the accelerator."""

    def __init__(self, group: str, operation: str) -> None:
        super().__init__()
        self.call = P.AllReduce(operation, group)

    def construct(self, values: Tensor) -> Tensor:
        return self.call(values)


class HostGather(nn.Cell):
    """The arrays of all processes, stacked, on CPU, where a graph can sum float32 and do nothing else.

    Each process writes its values into its own row of zeros, sixteen bits to a float32; the sum of the rows is exact
    and holds everybody's bits. ``reduce`` is what NumPy does with the stack.
    """

    def __init__(self, group: str, dtype: str, reduce: Callable[[Array], Array] = np.asarray) -> None:
        super().__init__()
        rank, size = int(get_rank(group)), group_size(group)
        values_dtype, pieces = np.dtype(dtype), np.dtype(dtype).itemsize // 2
        reduced_axes = 0 if reduce is np.asarray else 1

        def encode(values: Array) -> Any:
            rows = np.zeros((size, *values.shape, pieces), np.float32)
            rows[rank] = np.ascontiguousarray(values)[..., None].view(np.uint16)
            return rows

        def decode(rows: Array) -> Any:
            return reduce(np.ascontiguousarray(rows.astype(np.uint16)).view(values_dtype)[..., 0])

        self.encode = ops.Custom(encode, lambda shape: (size, *shape, pieces), lambda _: ms.float32, "pyfunc")
        self.decode = ops.Custom(
            decode, lambda shape: tuple(shape[reduced_axes:-1]), lambda _: getattr(ms, dtype), "pyfunc"
        )
        self.call = P.AllReduce("sum", group)

    def construct(self, values: Tensor) -> Tensor:
        return self.decode(self.call(self.encode(values)))


def sum_rows(rows: Array) -> Array:
    """The sum in the same order, hence to the same bits, on all processes."""
    return np.asarray(rows.sum(axis=0))


def max_rows(rows: Array) -> Array:
    return np.asarray(rows.max(axis=0))


def reduction(group: str | None, operation: str, dtype: str, on_host: bool) -> nn.Cell:
    """The cell that reduces tensors of ``dtype``, of at least one dimension, with "sum" or "max"."""
    if group is None:
        return SingleProcess()
    if on_host:
        return HostGather(group, dtype, sum_rows if operation == "sum" else max_rows)
    return DeviceReduce(group, operation)
