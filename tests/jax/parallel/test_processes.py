"""Split losses over several processes of jax.distributed, on this machine, with gloo between them."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
def test_two_processes_of_two_devices_each() -> None:
    command = [sys.executable, str(WORKER), free_address(), "2"]
    processes = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    for process, (out, err) in zip(processes, said, strict=True):
        assert process.returncode == 0, out + err[-4000:]
        assert "every check passed" in out
