"""Processes that are threads: torch's in-process group, on which a grid of ranks starts in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.multi_threaded_pg import (
    ProcessLocalGroup,
    _install_threaded_pg,
    _uninstall_threaded_pg,
)

import unixent

unixent.get_backend("torch")  # once, before several threads ask for it
# Seconds that a rank may wait for the others.
PATIENCE = 60
# Unequal parts; of four the second is empty.
CUTS = {1: (0, 1), 2: (0, 0.7, 1), 4: (0, 0.5, 0.5, 0.8, 1)}


@dataclass(frozen=True)
class Ranks:
    """A grid of data x model, as one of its ranks sees it."""

    data: int
    model: int
    rank: int
    mesh: Any
    config: unixent.ParallelConfig

    def _part(self, size: int, parts: int, index: int) -> slice:
        cuts = [round(size * cut) for cut in CUTS[parts]]
        return slice(cuts[index], cuts[index + 1])

    def rows(self, size: int) -> slice:
        """The positions of this rank."""
        return self._part(size, self.data, self.rank // self.model)

    def columns(self, size: int) -> slice:
        """Its classes."""
        return self._part(size, self.model, self.rank % self.model)

    def local(self, tensor: torch.Tensor, placements: Any) -> torch.Tensor:
        """This rank's part of a tensor with these placements, as torch.chunk cuts, one mesh axis after the other."""
        for axis, placement in enumerate(placements):
            if isinstance(placement, Shard):
                size = tensor.shape[placement.dim]
                most = -(-size // self.mesh.size(axis))
                start = min(size, most * self.mesh.get_local_rank(axis))
                tensor = tensor.narrow(placement.dim, start, min(most, size - start))
        return tensor.detach().clone()

    def place(self, tensor: torch.Tensor, placements: Any) -> DTensor:
        """A DTensor without a collective: redistribute keeps plans of uneven parts that threads must not share."""
        local, shape, stride = self.local(tensor, placements), tensor.shape, tensor.stride()
        return DTensor.from_local(local, self.mesh, placements, run_check=False, shape=shape, stride=stride)


Work = Callable[[Ranks], Any]
Run = Callable[[int, int, Work], list[Any]]


def run_on_threads(data: int, model: int, work: Work) -> list[Any]:
    """What ``work`` returns on each rank; an error of any rank is raised here."""
    ProcessLocalGroup.reset()
    world, store, size = _install_threaded_pg(), dist.HashStore(), data * model
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=size, store=store)
        try:
            mesh = init_device_mesh("cpu", (data, model), mesh_dim_names=("dp", "tp"))
            config = unixent.ParallelConfig.from_mesh(mesh, data="dp", model="tp")
            results[rank] = work(Ranks(data, model, rank, mesh, config))
        except BaseException as error:
            errors.append(error)
            ProcessLocalGroup.exception_handle(error)  # wakes the ranks that wait for this one
        finally:
            if dist.distributed_c10d._world is world:
                dist.destroy_process_group()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    waiting = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    if waiting and not errors:
        raise TimeoutError(f"ranks {waiting} still wait for others after {PATIENCE} seconds")
    for error in sorted(errors, key=lambda each: isinstance(each, SystemExit)):  # the ranks that were woken
        raise error
    return results


@pytest.fixture
def on_ranks() -> Iterator[Run]:
    """``on_ranks(data, model, work)``: ``work(ranks)`` on each rank of a grid, and its results in their order."""
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    try:
        yield run_on_threads
    finally:
        _uninstall_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
