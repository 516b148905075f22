"""Groups of processes by their MindSpore names, and what they tell each other outside of a graph."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.communication import GlobalComm, create_group, get_group_size, get_rank
from mindspore.mint import distributed
from mindspore.ops import operations as P

from unixent.errors import BackendError
from unixent.options import ParallelConfig

Array = np.ndarray[Any, Any]
START = "start the processes with msrun and call mindspore.communication.init() first"


def size_of(name: Any) -> int:
    """How many processes a group has."""
    if not isinstance(name, str):
        raise BackendError(f"parallel: expected the name of a MindSpore group, as of create_group; got {name!r}")
    if not GlobalComm.INITED:
        raise BackendError(f"parallel: expected initialised communication for group {name!r}; {START}")
    try:
        return int(get_group_size(name))
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"parallel: expected a MindSpore group that this process is in; got {name!r}") from error


def refuse_shards() -> None:
    """In the modes that split one program by themselves, tensors are whole and there are no processes to see."""
    mode = str(ms.get_auto_parallel_context("parallel_mode"))
    if mode in ("semi_auto_parallel", "auto_parallel"):
        raise BackendError(
            f"parallel: expected tensors that each process has its own share of; got parallel_mode={mode!r}, in which "
            "MindSpore splits whole tensors by itself (and on CPU refuses to). Use stand_alone or data_parallel mode"
        )


def gather(row: tuple[int, ...], name: str) -> list[tuple[int, ...]]:
    """The rows of all processes of a group, in the order of their ranks."""
    size = size_of(name)
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


class CpuGroup:
    """A group as the NumPy backend wants it: `unixent_numpy._groups.Group`, of eager tensors on CPU."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.size = size_of(name)
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
        return gather(row, self._name)


def grid(config: Any) -> ParallelConfig:
    """The config with its groups: those that it names, or, where it names none, those of a grid of all processes.

    The grid is MindSpore's own: processes with the same positions are neighbours, so that process r holds the part
    ``r // model_parallel`` of the positions and ``r % model_parallel`` of the classes.
    """
    given = ParallelConfig.of(config)
    tokens, parts = given.data_parallel * given.context_parallel, given.model_parallel
    if given.degree == 1 or given.model_group is not None or given.token_group is not None:
        return given
    world = size_of(GlobalComm.WORLD_COMM_GROUP)
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


def _group(kind: str, ranks: list[int]) -> str | None:
    """The group of these processes, made once."""
    if len(ranks) == 1:
        return None
    name = f"unixent-{kind}-{'-'.join(map(str, ranks))}"
    if tuple(ranks) not in _made:
        create_group(name, ranks)
        _made[tuple(ranks)] = name
    return _made[tuple(ranks)]
