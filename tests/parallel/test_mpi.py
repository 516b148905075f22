"""Sharded losses on NumPy over MPI, several processes on this machine."""

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
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "parallel" / "numpy_2x2.py"
needs_mpiexec = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec on this machine (pip install mpich)")


def run_mpi(count: int, script: Path, *arguments: object) -> str:
    """Standard output of a script on ``count`` processes, none of which failed."""
    # -m mpi4py: a process that raises takes the others with it instead of leaving them to wait.
    command = [MPIEXEC, "-iface", "lo", "-n", count, sys.executable, "-m", "mpi4py", script, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_mpiexec
@pytest.mark.parametrize(("data", "model"), [(1, 2), (2, 1), (2, 2), (1, 4), (4, 1)])
def test_sharded_losses_equal_those_of_one_process_and_faults_raise_on_all(data, model):
    count = data * model
    assert run_mpi(count, WORKER, data, model).count("every check passed") == count


@needs_mpiexec
@pytest.mark.parametrize(("data", "model"), [(2, 2), (1, 3)])
def test_the_example_trains_as_one_process_does(data, model):
    pytest.importorskip("sklearn", reason='needs the extra "examples"')
    count = data * model
    output = run_mpi(count, EXAMPLE, "--data", data, "--model", model, "--steps", 20)
    assert output.count("as alone") == count


def test_a_degree_above_1_needs_its_group():
    config = unixent.ParallelConfig(model_parallel=2)
    with pytest.raises(unixent.BackendError, match="model_group: expected a group of 2 processes, since model_para"):
        unixent.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), parallel=config)
