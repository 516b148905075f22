"""What the benchmarks share: the machine's name, and how much memory a step took."""

from __future__ import annotations

import os
import platform
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
