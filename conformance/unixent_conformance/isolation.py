"""Cases in processes of their own, replaced when they die or hang: a segfault costs one case, not the run.

The parent sends `[id, mode]` a line at a time and the worker (`isolation_worker`) answers each with a result, both as
JSON. A worker that is gone before its answer has crashed on that case; one that is silent for too long is killed. The
parent never imports the implementation. With several jobs, each worker is given the cases of one feature at a time, and
the results come in the catalogue's order all the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from queue import Empty, Queue, SimpleQueue
from threading import TIMEOUT_MAX, Thread
from typing import Any

from unixent_conformance.cases import find
from unixent_conformance.harness import Harness, Mode
from unixent_conformance.implementation import Implementation
from unixent_conformance.results import Result, Verdict
from unixent_conformance.selection import Choice
from unixent_conformance.snippet import snippet
from unixent_conformance.under_test import Subject

# Importing a framework, on a busy machine.
START_SECONDS = 300.0

# After so many deaths in a row in one feature, the rest of the feature is given up: each costs a start.
PATIENCE = 5

# Fewer cases than this for each worker are not worth its start.
WORTH_A_START = 50


@dataclass(frozen=True)
class Task:
    """What a worker runs; plain data, to cross into another process."""

    tested: str
    framework: str | None = None
    choice: Choice = field(default_factory=Choice)
    strict: bool = False
    linear: bool = False
    device: str | None = None
    by_weight: bool = False
    listed: tuple[tuple[str, str], ...] = ()  # of which failures are expected, whether they are chosen or not
    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))


@dataclass(frozen=True)
class Plan:
    """What a worker says of itself: whom it tests, and the cases to send."""

    name: str
    framework: str
    version: str
    cases: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = ()


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
            start_new_session=True,  # it is ended with what it has started
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
        cases, left_out = tuple((id, mode) for id, mode in said["cases"]), tuple(said["left_out"])
        self.plan = Plan(**{**said, "cases": cases, "left_out": left_out})

    def ask(self, id: str, mode: str, seconds: float | None) -> Result | str:
        """The result of a case, or how the process ended instead: "died with SIGSEGV", "gave no answer in 60 s"."""
        said = self._ask([id, mode], seconds)
        return said if isinstance(said, str) else Result.from_record(said)

    def close(self) -> None:
        """End the process and those that it has started, whatever they are doing."""
        with suppress(OSError):  # nothing is left of it
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._errors):
            if stream is not None:
                with suppress(OSError):  # a pipe whose reader has died, with a line still in the buffer
                    stream.close()

    def _read(self) -> None:
        """Until nobody can write any more: closing the pipe elsewhere would wait for a process that is left."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _ask(self, message: Any, seconds: float | None) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=None if seconds is None else min(seconds, TIMEOUT_MAX))
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
    """A run in worker processes: `plan` says what it will be, iteration runs it.

    timeout: how long a worker may be silent; None for as long as it likes. jobs: how many work at a time, at the most.
    """

    def __init__(self, task: Task, timeout: float | None, jobs: int = 1) -> None:
        # What has been judged before its turn.
        self.early: dict[tuple[str, str], Result] = {}
        first = Worker(task)
        self.plan = first.plan
        jobs = max(1, min(jobs, len(self.plan.cases) // WORTH_A_START))
        self._slots = [
            WorkerSlot(task, self.plan, timeout, first),
            *(WorkerSlot(task, self.plan, timeout) for _ in range(jobs - 1)),
        ]

    def __iter__(self) -> Generator[Result, None, None]:
        batches, done = self._batches(), SimpleQueue[Result | Exception]()
        threads = [Thread(target=slot.work, args=(batches, done), daemon=True) for slot in self._slots]
        early = self.early
        try:
            for thread in threads:
                thread.start()
            for due in self.plan.cases:
                while due not in early:
                    said = done.get()
                    if isinstance(said, Exception):
                        raise said
                    early[said.id, said.mode] = said
                yield early.pop(due)
        finally:
            for slot in self._slots:
                slot.close()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _batches(self) -> SimpleQueue[Sequence[tuple[str, str]]]:
        """The cases, those of a feature together: they share compilations, and PATIENCE is counted over them."""
        batches = SimpleQueue[Sequence[tuple[str, str]]]()
        for _, cases in groupby(self.plan.cases, lambda pair: (find(pair[0]).feature, pair[1])):
            batches.put(tuple(cases))
        return batches


class WorkerSlot:
    """One worker after another."""

    def __init__(self, task: Task, plan: Plan, timeout: float | None, worker: Worker | None = None) -> None:
        self._task, self._plan, self._timeout, self._worker = task, plan, timeout, worker
        self._closed = False

    def work(self, batches: SimpleQueue[Sequence[tuple[str, str]]], done: SimpleQueue[Result | Exception]) -> None:
        """Put the results of batches, as long as there are any, or the error that ends the run."""
        try:
            while not self._closed:
                for result in self._results(batches.get_nowait()):
                    done.put(result)
        except Empty:
            pass
        except Exception as error:
            done.put(error)
        finally:
            self._end()

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._closed = True
        self._end()

    def _results(self, cases: Sequence[tuple[str, str]]) -> Iterator[Result]:
        deaths, how = 0, ""
        for id, mode in cases:
            if deaths >= PATIENCE:
                yield self._crashed(id, mode, f"not run: {PATIENCE} cases in a row ended the process; the last {how}")
                continue
            if self._closed:
                return
            self._worker = worker = self._worker or Worker(self._task)
            said = worker.ask(id, mode, self._timeout)
            if isinstance(said, Result):
                if said.verdict is not Verdict.REFUSES:  # a refusal may not have called it at all
                    deaths = 0
                yield said
            else:
                deaths, how = deaths + 1, said
                self._end()
                yield self._crashed(id, mode, f"the process {said}")

    def _end(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _crashed(self, id: str, mode: str, detail: str) -> Result:
        case = find(id)
        text = snippet(case, case.build(), _by_name(self._task, self._plan, mode), detail)
        return Result(id, case.feature, mode, Verdict.CRASHED, detail, float("inf"), text)


def _by_name(task: Task, plan: Plan, mode: str) -> Subject:
    """A subject that has names and nothing else: the parent does not load what it tests."""
    harness = Harness()
    harness.name = task.framework or plan.framework

    def absent(*arguments: Any, **options: Any) -> Any:
        raise NotImplementedError("only the worker has it")

    return Subject(harness, Implementation(plan.name, absent, path=task.tested, as_logits=task.linear), Mode(mode))
