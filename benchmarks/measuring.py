"""What the benchmarks share: the machine's name, busy processes beside it, and how much memory a step took."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Ends with the benchmark, however that ends.
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"


def processor() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def machine() -> str:
    """Processor, cores, system, and how busy it is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{processor()}, {cores} cores, {platform.system()} {platform.machine()}{busy}"


def add_busy_option(parser: argparse.ArgumentParser) -> None:
    """The option ``--busy N``, for `by_load`."""
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="also measure beside N busy processes")


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes beside this one that keep a core busy each, as data loaders or a build would."""
    running = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def by_load(busy: int, measure: Callable[[], T]) -> dict[str, T]:
    """What ``measure`` returns on the machine as it is ("") and, where ``busy`` is not 0, beside so many processes."""
    measured = {"": measure()}
    if busy:
        with busy_processes(busy):
            measured[f", {busy} busy"] = measure()
    return measured


def status(field: str) -> int:
    """A field of this process's status on Linux (VmRSS, VmHWM), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def resident_peak(step: Callable[[], Any]) -> int:
    """Largest resident memory during a step, beyond what was there before. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def traced_peak(step: Callable[[], Any]) -> int:
    """Largest amount of memory that NumPy and Python held during a step, beyond what they held before."""
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
