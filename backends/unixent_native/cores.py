"""How many cores this process may use: those of its affinity, and no more than its control groups grant."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path


def available_cores() -> int:
    """The cores that threads of this process can keep busy, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min(cores, cgroup_cores()))


@lru_cache(maxsize=1)
def cgroup_cores(groups: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> float:
    """The CPU quota of this process's control groups (version 2 or 1) in cores, rounded up; infinite without one."""
    cores = math.inf
    try:
        lines = Path(groups).read_text().splitlines()
    except OSError:  # not Linux
        return cores
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        folder = Path(mount, "cpu") if controllers else Path(mount)
        # Each group on the way has a quota of its own; a container may see no more than the first.
        for part in ("", *path.split("/")):
            folder /= part
            with suppress(OSError, ValueError):  # of a file that is not there, and of "max"
                quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
                if quota > 0:
                    cores = min(cores, math.ceil(quota / period))
    return cores
