"""Many calls: a worker that is started again behind the call that ended it, and what its calls came to."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from unixent_hostile.worker import SLOTS


@dataclass
class Group:
    """Findings of one kind: the first of them, and how many."""

    name: str
    first: int
    detail: str
    indices: list[int] = field(default_factory=list)


@dataclass
class Result:
    """What a sweep came to."""

    backend: str
    seed: int
    counts: dict[str, int]
    groups: dict[str, Group]
    crashes: int = 0
    seconds: float = 0.0

    @property
    def findings(self) -> int:
        return sum(len(group.indices) for group in self.groups.values())

    def add(self, name: str, index: int, detail: str) -> None:
        self.groups.setdefault(name, Group(name, index, detail)).indices.append(index)

    def text(self) -> str:
        refusals = {name: count for name, count in self.counts.items() if name.endswith("Error") and count}
        lines = [
            f"{self.backend}: {self.counts['calls']} calls in {self.seconds:.0f} s, seed {self.seed}; "
            f"{self.counts['values']} values compared, {self.crashes} crashes",
            f"refusals: {sum(refusals.values())} "
            + ", ".join(f"{name} {count}" for name, count in sorted(refusals.items())),
            f"findings: {self.findings} in {len(self.groups)} groups",
        ]
        for group in sorted(self.groups.values(), key=lambda group: -len(group.indices)):
            some = ", ".join(map(str, group.indices[:8]))
            lines += ["", f"[{len(group.indices)}] {group.name}", f"    calls {some}"]
            lines += [f"    {line}" for line in group.detail.splitlines()]
            lines += [f"    {line}" for line in snippet(self.backend, self.seed, group.first).splitlines()]
        return "\n".join(lines)


def snippet(backend: str, seed: int, index: int) -> str:
    """Python that makes one call again."""
    return f"from unixent_hostile.replay import replay\nreplay({backend!r}, seed={seed}, index={index})"


def sweep(
    backend: str,
    seed: int,
    first: int,
    count: int,
    *,
    functions: str = "unixent",
    timeout: float = 120.0,
    seconds: float = float("inf"),
) -> Result:
    """Calls `first` to `first + count`, or as many as so many seconds take, over crashes."""
    began = time.monotonic()
    with shared_state() as (path, state):
        result = Result(backend, seed, {}, {})
        stop, at = first + count, first
        while at < stop:
            state[0] = at - 1
            given = {"backend": backend, "seed": seed, "first": at, "stop": stop, "functions": functions}
            ending = _run({**given, "state": path}, state, timeout, began + seconds, result)
            if state[0] == at - 1:
                raise RuntimeError(f"the process that makes the calls does not start: {ending}")
            if state[0] == stop or time.monotonic() >= began + seconds:
                break
            result.crashes += 1
            result.add(f"the process {ending.splitlines()[0]}", state[0], ending)
            at = state[0] + 1
            state[1] += 1
        result.counts = dict(zip(SLOTS, state.tolist(), strict=True))
    result.seconds = time.monotonic() - began
    return result


@contextmanager
def shared_state() -> Iterator[tuple[str, memoryview]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        path.write_bytes(bytes(8 * len(SLOTS)))
        with path.open("r+b") as file:
            state = memoryview(mmap.mmap(file.fileno(), 8 * len(SLOTS))).cast("q")
        yield str(path), state


def _run(given: dict[str, object], state: memoryview, timeout: float, deadline: float, result: Result) -> str:
    """One worker until it ends; how it did. Its findings go into the result."""
    errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    command = [sys.executable, "-m", "unixent_hostile.worker", json.dumps(given)]
    path = os.pathsep.join(filter(None, sys.path))
    with errors, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
        )
        assert process.stdout is not None
        lines = process.stdout

        def read() -> None:
            for line in lines:
                said = json.loads(line)
                result.add(said["group"], said["index"], said["detail"])

        reader = Thread(target=read, daemon=True)
        reader.start()
        hung = _wait(process, state, timeout, deadline)
        reader.join()
        errors.seek(0)
        tail = "\n".join(errors.read().splitlines()[-12:])
    if hung:
        return f"gave no answer in {timeout:g} s\n{tail}"
    code = process.returncode
    return f"{'died with ' + signal.Signals(-code).name if code < 0 else f'ended with exit code {code}'}\n{tail}"


def _wait(process: subprocess.Popen[str], state: memoryview, timeout: float, deadline: float) -> bool:
    """Until the process ends, or is killed since one call, or all of them, take too long."""
    last, since = state[0], time.monotonic()
    while process.poll() is None:
        time.sleep(0.02 if time.monotonic() - since < 1 else 0.25)
        if state[0] != last:
            last, since = state[0], time.monotonic()
        if time.monotonic() - since > timeout or time.monotonic() >= deadline:
            process.kill()
            process.wait()
            return True
    return False
