"""Split losses on NumPy over MPI, several processes on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import unixent

pytest.importorskip("mpi4py", reason="mpi4py is not installed (pip install mpi4py mpich)")
MPIEXEC = shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")
WORKER = Path(__file__).with_name("mpi_worker.py")


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec on this machine (pip install mpich)")
@pytest.mark.parametrize(("data", "model"), [(1, 2), (2, 1), (2, 2), (1, 4), (4, 1)])
def test_split_equals_whole_and_faults_reach_everybody(data, model):
    count = data * model
    # -m mpi4py: a process that raises takes the others with it instead of leaving them to wait.
    command = [MPIEXEC, "-iface", "lo", "-n", count, sys.executable, "-m", "mpi4py", WORKER, data, model]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("every check passed") == count


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec on this machine (pip install mpich)")
@pytest.mark.parametrize(("data", "model"), [(2, 2), (1, 3)])
def test_the_example_trains_as_one_process_does(data, model):
    pytest.importorskip("sklearn", reason='needs the extra "examples"')
    script = Path(__file__).resolve().parents[2] / "examples" / "parallel" / "numpy_2x2.py"
    count = data * model
    command = [MPIEXEC, "-iface", "lo", "-n", count, sys.executable, "-m", "mpi4py", script]
    command += ["--data", data, "--model", model, "--steps", 20]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as alone") == count


def test_a_degree_needs_its_group():
    config = unixent.ParallelConfig(model_parallel=2)
    with pytest.raises(unixent.BackendError, match="model_group: expected a group of 2 processes, since model_para"):
        unixent.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), parallel=config)
