"""Split losses on MindSpore's own engine, several processes on this machine under msrun."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
MSRUN = shutil.which("msrun", path=sysconfig.get_path("scripts")) or shutil.which("msrun")
HERE = Path(__file__).parent
MARK = "UNIXENT_TEST_RUN"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(mark: str) -> list[int]:
    """The processes of a run: msrun gives each worker a session of its own, so only their environment tells."""
    computed = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                computed.append(int(entry.name))
    return computed


def msrun(folder: Path, script: Path, *arguments: object, workers: int, timeout: float) -> tuple[int, str, str]:
    """The exit status, what the workers logged, and what msrun said. Leaves no process behind."""
    mark = uuid.uuid4().hex
    # msrun starts "python"; tests run away from the checkout.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, MARK: mark, "OMP_NUM_THREADS": "1"}
    command = [
        MSRUN,
        *("--worker_num", workers, "--local_worker_num", workers, "--master_addr", "127.0.0.1"),
        *("--master_port", free_port(), "--join", "True", "--cluster_time_out", 60, "--log_dir", folder / "logs"),
        *(script, *arguments),
    ]
    try:
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            cwd=folder,
            env=environment,
        )
    finally:
        for process in started(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    logs = "".join(log.read_text(errors="replace") for log in sorted((folder / "logs").glob("worker_*.log")))
    return done.returncode, logs, done.stdout + done.stderr


def exhaustive(data: int, model: int) -> Any:
    return pytest.param(data, model, marks=pytest.mark.exhaustive)


needs_msrun = pytest.mark.skipif(MSRUN is None, reason="no msrun on this machine (pip install mindspore)")


@needs_msrun
@pytest.mark.parametrize(("data", "model"), [exhaustive(1, 3), exhaustive(2, 1), (2, 2)])
def test_split_equals_whole_and_faults_reach_everybody(tmp_path, data, model):
    status, logs, said = msrun(tmp_path, HERE / "worker.py", data, model, workers=data * model, timeout=400)
    assert logs.count("every check passed") == data * model, said[-5000:]
    assert status == 0


@needs_msrun
@pytest.mark.parametrize(("data", "model"), [exhaustive(3, 1), (2, 2)])
def test_split_equals_whole_in_compiled_code(tmp_path, data, model):
    status, logs, said = msrun(tmp_path, HERE / "graph_worker.py", data, model, workers=data * model, timeout=400)
    assert logs.count("every check passed") == data * model, said[-5000:]
    assert status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@needs_msrun
@pytest.mark.parametrize(("data", "model"), [exhaustive(1, 3), exhaustive(3, 1), (2, 2)])
def test_split_statistics_and_sparse_targets_are_those_of_whole_arrays(tmp_path, data, model):
    arguments = HERE / "positions_worker.py", data, model
    status, logs, said = msrun(tmp_path, *arguments, workers=data * model, timeout=400)
    assert logs.count("every check passed") == data * model, logs[-5000:] + said[-5000:]
    assert status == 0


@needs_msrun
def test_the_example_trains_as_one_process_does(tmp_path):
    pytest.importorskip("sklearn", reason='needs the extra "examples"')
    script = Path(__file__).resolve().parents[3] / "examples" / "parallel" / "mindspore_2x2.py"
    status, logs, said = msrun(tmp_path, script, workers=4, timeout=300)
    assert status == 0, said[-5000:]
    assert logs.count("as alone") == 4


WAYS_TO_GO = ("raises", "dies")
Fault = tuple[int, str, str, float]


def lose_a_process(folder: Path, how: str) -> Fault:
    """What `msrun` gives, and how long it took."""
    begin = time.monotonic()
    return (*msrun(folder, HERE / "fault_worker.py", how, workers=2, timeout=200), time.monotonic() - begin)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Fault]]]:
    """Both at once: the processes do little but wait for each other."""
    with ThreadPoolExecutor() as pool:
        yield {how: pool.submit(lose_a_process, tmp_path_factory.mktemp(how), how) for how in WAYS_TO_GO}


@needs_msrun
@pytest.mark.parametrize("how", WAYS_TO_GO)
def test_a_process_that_goes_takes_the_others_with_it(faults, how):
    status, logs, said, seconds = faults[how].result()
    assert status != 0
    assert logs.count("both processes split a loss") == 2, said[-5000:]
    assert "came back" not in logs
    assert seconds < 150
