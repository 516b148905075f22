"""The process that `isolation` starts: loads the implementation, then answers cases, a line of JSON each."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any, TextIO

from unixent import UnixentError
from unixent_conformance.api import prepare
from unixent_conformance.isolation import Task
from unixent_conformance.selection import Choice


def serve(requests: TextIO, answers: TextIO) -> None:
    """Read a task, say what it comes to, then one result for each `[id, mode]`."""

    def answer(message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    given = json.loads(requests.readline())
    choice: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given["choice"].items()}
    listed = tuple((id, mode) for id, mode in given["listed"])
    task = Task(**{**given, "choice": Choice(**choice), "path": tuple(given["path"]), "listed": listed})
    try:
        prepared = prepare(task)
    except Exception as error:
        answer({"error": _said(error)})
        return
    next(iter(prepared.subjects.values())).harness.in_worker()
    answer(asdict(prepared.plan))
    for line in requests:
        id, mode = json.loads(line)
        answer(prepared.judge(id, mode).to_record())


def _said(error: Exception) -> str:
    """As the command line says it where the error is raised in its own process."""
    ours = type(error) in (ValueError, LookupError, TypeError) or isinstance(error, (ImportError, UnixentError))
    return str(error) if ours else f"{type(error).__name__}: {error}"


def main() -> None:
    # The implementation may print: what it writes to standard output goes to standard error, the answers to a
    # descriptor that only this module knows.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    # A terminal sends Ctrl-C to the whole group: the parent ends its workers, and no case has crashed by it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
