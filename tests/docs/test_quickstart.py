"""The distributed snippets of the quick start, under their launchers: two processes take the step that one takes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quickstart.md"
BLOCK = re.compile(r"^```python ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Launcher(NamedTuple):
    needs: str
    command: str
    step: str  # the loss and the parameters after the step
    end: str = ""


LAUNCHERS = {
    "mpiexec": Launcher("mpi4py", "mpiexec -iface lo -n {count} {python} -m mpi4py", "loss, classifier"),
    "torchrun": Launcher(
        "torch",
        "{python} -m torch.distributed.run --nproc-per-node {count} --master-port {port}",
        "loss.item(), model.weight.detach()",
        # DistributedDataParallel keeps the destroyed group's threads, one of which may abort an interpreter at its end.
        "os._exit(0)\n",
    ),
    "devices": Launcher("jax", "{python}", "loss, params"),
    "msrun": Launcher(
        "mindspore",
        "msrun --worker_num {count} --local_worker_num {count} --master_port {port} --join True",
        "loss.asnumpy(), params.asnumpy()",
    ),
}
SAVE = """
import os, numpy
numpy.save(f"step-{{os.getpid()}}", numpy.concatenate([numpy.ravel(part) for part in ({})]))
"""


def script(name: str) -> str:
    """The snippets of a launcher's framework, up to its own, which saves its step."""
    framework = [] if name == "mpiexec" else [LAUNCHERS[name].needs]
    blocks = [
        text
        for words, text in BLOCK.findall(PAGE.read_text("utf-8"))
        if words.split() in (framework, [*framework, name])
    ]
    assert len(blocks) == 3
    return "".join(blocks) + SAVE.format(LAUNCHERS[name].step) + LAUNCHERS[name].end


def steps(name: str, count: int, folder: Path) -> list[np.ndarray]:
    """What each process saved; of JAX, the one process with so many devices."""
    folder.mkdir()
    (folder / "step.py").write_text(script(name), "utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])),  # msrun starts "python"
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
    }
    command = [part.format(count=count, port=port, python=sys.executable) for part in LAUNCHERS[name].command.split()]
    done = subprocess.run(
        [*command, "step.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [np.load(path) for path in sorted(folder.glob("step-*.npy"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_two_processes_take_the_step_of_one(name: str, tmp_path: Path) -> None:
    launcher = LAUNCHERS[name]
    programs = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    program = launcher.command.split()[0].format(python=sys.executable)
    if find_spec(launcher.needs) is None or shutil.which(program, path=programs) is None:
        pytest.skip(f"needs {launcher.needs} and {program}")
    (alone,) = steps(name, 1, tmp_path / "one")
    both = steps(name, 2, tmp_path / "two")
    assert len(both) == (1 if name == "devices" else 2)
    for each in both:
        np.testing.assert_allclose(each, alone, rtol=2e-5, atol=1e-6)
