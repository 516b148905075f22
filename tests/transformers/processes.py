"""Runs a script in two gloo processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_START = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist

rank, store, *arguments = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=90))
"""


def run_two(folder: Path, body: str, *arguments: str) -> None:
    """``body`` runs with ``rank``, ``torch``, ``dist`` and ``arguments``; each process must come to its end."""
    script = folder / "rank.py"
    script.write_text(f"{_START}\n{body}\ndist.barrier()\ndist.destroy_process_group()\nprint('at the end')\n")
    commands = ([sys.executable, str(script), str(rank), f"file://{folder / 'store'}", *arguments] for rank in range(2))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(command, **pipes) for command in commands]
    try:
        outputs = [process.communicate(timeout=180) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    # Not the exit status: once in a while a thread of gloo ends badly after the interpreter has.
    for output, errors in outputs:
        assert output.endswith("at the end\n"), output + errors
