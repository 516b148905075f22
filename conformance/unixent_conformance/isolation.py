"""Cases in a process of their own, replaced when it dies or hangs: a segfault costs one case, not the run.

The parent sends `[id, mode]` a line at a time and the worker (`isolation_worker`) answers each with a result, both as
JSON. A worker that is gone before its answer has crashed on that case; one that is silent for too long is killed. The
parent never imports the implementation.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from queue import Empty, Queue
from threading import Thread
from typing import Any

from unixent_conformance.cases import find
from unixent_conformance.harness import Harness, Mode
from unixent_conformance.implementation import Implementation
from unixent_conformance.report.records import result_from
from unixent_conformance.repro import snippet
from unixent_conformance.runner import Result, Subject, Verdict

# Importing a framework, on a busy machine.
START_SECONDS = 300.0

# After so many deaths in a row in one feature, the rest of the feature is given up: each costs a start.
PATIENCE = 5


@dataclass(frozen=True)
class Task:
    """What a worker runs; plain data, to cross into another process."""

    tested: str
    framework: str | None = None
    features: tuple[str, ...] | None = None
    quick: bool = False
    strict: bool = False
    linear: bool = False
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))


@dataclass(frozen=True)
class Plan:
    """What a worker says of itself: whom it tests, and the cases to send."""

    name: str
    framework: str
    version: str
    cases: tuple[tuple[str, str], ...]


class CannotStart(ImportError):
    """The implementation cannot be loaded; the text is the worker's."""


class Worker:
    """One process. `ask` answers a line, or says how the process ended."""

    def __init__(self, task: Task) -> None:
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "unixent_conformance.isolation_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, task.path))},
        )
        self._lines: Queue[str] = Queue()
        Thread(target=self._read, daemon=True).start()
        said = self._ask(asdict(task), START_SECONDS)
        if isinstance(said, str):
            self.close()
            raise CannotStart(f"the process that should load it {said}")
        if "error" in said:
            self.close()
            raise CannotStart(said["error"])
        self.plan = Plan(**{**said, "cases": tuple((id, mode) for id, mode in said["cases"])})

    def ask(self, id: str, mode: str, seconds: float) -> Result | str:
        """The result of a case, or how the process ended instead: "died with SIGSEGV", "gave no answer in 60 s"."""
        said = self._ask([id, mode], seconds)
        return said if isinstance(said, str) else result_from(said)

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(OSError):  # a pipe whose reader has died, with a line still in the buffer
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:  # closed while waiting
            pass
        self._lines.put("")

    def _ask(self, message: Any, seconds: float) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except Empty:
            return f"gave no answer in {seconds:g} s and was killed"
        except OSError:
            line = ""
        return json.loads(line) if line else self._ending()

    def _ending(self) -> str:
        code = self._process.wait()
        how = f"died with {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._errors.seek(0)
        last = [line.strip() for line in self._errors.read().splitlines() if line.strip()][-3:]
        return f"{how}: {' | '.join(last)}" if last and code >= 0 else how


class Isolated:
    """A run in worker processes: `plan` says what it will be, iteration runs it."""

    def __init__(self, task: Task, timeout: float) -> None:
        self._task, self._timeout = task, timeout
        self._worker: Worker | None = Worker(task)
        self.plan = self._worker.plan

    def __iter__(self) -> Iterator[Result]:
        deaths, last = 0, ""
        try:
            for id, mode in self.plan.cases:
                feature = find(id).feature
                if feature != last:
                    deaths, last = 0, feature
                if deaths >= PATIENCE:
                    yield self._crashed(id, mode, f"not run: the process ended in each of the last {PATIENCE} cases")
                    continue
                self._worker = self._worker or Worker(self._task)
                said = self._worker.ask(id, mode, self._timeout)
                if isinstance(said, Result):
                    if said.verdict is not Verdict.REFUSES:  # a refusal may not have called it at all
                        deaths = 0
                    yield said
                else:
                    deaths += 1
                    self._worker.close()
                    self._worker = None
                    yield self._crashed(id, mode, f"the process {said}")
        finally:
            if self._worker is not None:
                self._worker.close()

    def _crashed(self, id: str, mode: str, detail: str) -> Result:
        case = find(id)
        text = snippet(case, case.build(), _by_name(self._task, self.plan, mode), detail)
        return Result(id, case.feature, mode, Verdict.CRASHED, detail, float("inf"), text)


def _by_name(task: Task, plan: Plan, mode: str) -> Subject:
    """A subject that has names and nothing else: the parent does not load what it tests."""
    harness = Harness()
    harness.name = task.framework or plan.framework

    def absent(*arguments: Any, **options: Any) -> Any:
        raise NotImplementedError("only the worker has it")

    return Subject(harness, Implementation(plan.name, absent, path=task.tested, as_logits=task.linear), Mode(mode))
