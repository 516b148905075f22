"""The frameworks' own ways to start processes that talk to each other, and to form groups of them.

An engine has a command line that starts a program on several processes, and a function that each of them calls to find
its place in a mesh of data x model. Every launcher is given a time limit: nobody waits for ever for one that died.
"""

from __future__ import annotations

import shutil
import socket
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from unixent import ParallelConfig

# How long a process waits for another one.
PATIENCE = 120


@dataclass(frozen=True)
class ProcessMesh:
    """This process's place among data x model, and how they exchange answers.

    rank: (data, model). config: what the implementation is given. gather: the objects of all processes, model ranks
    running fastest. leave: take the groups down. is_global: one process drives all devices, and its arrays are not cut.
    """

    data: int
    model: int
    rank: tuple[int, int]
    config: ParallelConfig
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    leave: Callable[[], None] = lambda: None
    is_global: bool = False


@dataclass(frozen=True)
class Engine:
    """launch: the command line, less the program, for a number of processes. join: called on each of them."""

    launch: Callable[[int], list[str]]
    join: Callable[[int, int], ProcessMesh]


def script(name: str) -> str:
    """A program that a package has installed."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"no {name} on this machine")
    return path


def mpi_launch(processes: int) -> list[str]:
    # -m mpi4py: a process that raises takes the others with it instead of leaving them to wait.
    return [script("mpiexec"), "-iface", "lo", "-n", str(processes), sys.executable, "-m", "mpi4py", "-m"]


def mpi_join(data: int, model: int) -> ProcessMesh:
    from mpi4py import MPI

    grid = MPI.COMM_WORLD.Create_cart((data, model))
    config = ParallelConfig(data, model, token_group=grid.Sub((True, False)), model_group=grid.Sub((False, True)))
    row, column = grid.Get_coords(grid.Get_rank())
    return ProcessMesh(data, model, (row, column), config, grid.allgather)


def torch_launch(processes: int) -> list[str]:
    return [
        sys.executable,
        *("-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={processes}"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m"),
    ]


def torch_join(data: int, model: int) -> ProcessMesh:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(seconds=PATIENCE))
    mesh = distributed.init_device_mesh("cpu", (data, model), mesh_dim_names=("data", "model"))
    config = ParallelConfig.from_mesh(mesh, data="data", model="model")

    def gather(value: Any) -> list[Any]:
        values = [None] * (data * model)
        distributed.all_gather_object(values, value)
        return values

    return ProcessMesh(
        data, model, divmod(distributed.get_rank(), model), config, gather, distributed.destroy_process_group
    )


def mindspore_launch(processes: int) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The "python" of the path: `run_split` puts this one in front.
    return [
        script("msrun"),
        *(f"--worker_num={processes}", f"--local_worker_num={processes}", "--master_addr=127.0.0.1"),
        *(f"--master_port={port}", "--join=True", f"--cluster_time_out={PATIENCE}", "--log_dir=logs", "python", "-m"),
    ]


def mindspore_join(data: int, model: int) -> ProcessMesh:
    import mindspore
    from mindspore import communication, mint

    from unixent_mindspore import grid

    mindspore.set_device("CPU")
    communication.init()
    config = grid(ParallelConfig(data, model))

    def gather(value: Any) -> list[Any]:
        values: list[Any] = [None] * (data * model)
        mint.distributed.all_gather_object(values, value)
        return values

    return ProcessMesh(data, model, divmod(communication.get_rank(), model), config, gather, communication.release)


def jax_launch(processes: int) -> list[str]:
    return [sys.executable, "-m"]


def jax_join(data: int, model: int) -> ProcessMesh:
    import jax

    jax.config.update("jax_num_cpu_devices", data * model)
    mesh = jax.make_mesh((data, model), ("data", "model"))
    return ProcessMesh(data, model, (0, 0), ParallelConfig.from_mesh(mesh, data="data", model="model"), is_global=True)


ENGINES = {
    "numpy": Engine(mpi_launch, mpi_join),
    "jax": Engine(jax_launch, jax_join),
    "torch": Engine(torch_launch, torch_join),
    "mindspore": Engine(mindspore_launch, mindspore_join),
}
