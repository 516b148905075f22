"""The process that makes calls: findings as lines of JSON, where it is in a file that outlives it."""

from __future__ import annotations

import faulthandler
import json
import mmap
import os
import resource
import sys
import warnings
from dataclasses import asdict
from importlib import import_module
from typing import Any, TextIO

import unixent
from unixent_hostile.drawing import draw
from unixent_hostile.frameworks import FRAMEWORKS
from unixent_hostile.judging import Judge, Outcome

ERRORS = (
    *("ShapeError", "DTypeError", "OptionError", "TargetRangeError", "NonFiniteError", "EmptyMeanError"),
    *("BackendError", "UnknownBackendError", "BackendUnavailableError"),
)
# What the file holds: the index of the call being made, calls made, values compared, refusals by class.
SLOTS = ("index", "calls", "values", *ERRORS)

# What the process may grow by, over what its framework takes.
MEMORY = 6 << 30


def main() -> None:
    given: dict[str, Any] = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a framework's prints are not answers
    faulthandler.enable()
    with open(given["state"], "r+b") as file:
        state = memoryview(mmap.mmap(file.fileno(), 8 * len(SLOTS))).cast("q")
    serve(given, state, answers)


def serve(given: dict[str, Any], state: memoryview, answers: TextIO) -> None:
    framework = FRAMEWORKS[given["backend"]]()
    unixent.get_backend(framework.name)
    framework.harness.version()
    limit_memory()
    module, _, name = given["functions"].partition(":")
    judge = Judge(framework, getattr(import_module(module), name) if name else import_module(module))
    warnings.simplefilter("error")  # a warning that escapes is a finding
    for index in range(given["first"], given["stop"]):
        state[0] = index
        try:
            outcome = judge.judge(draw(given["seed"], index, framework.traits))
        except MemoryError as error:
            outcome = Outcome(group=f"memory: {error}"[:100])
        state[1] += 1
        state[2] += outcome.compared
        if outcome.refused:
            state[SLOTS.index(outcome.refused)] += 1
        if outcome.group:
            answers.write(json.dumps({"index": index, **asdict(outcome)}) + "\n")
            answers.flush()
    state[0] = given["stop"]


def limit_memory() -> None:
    """Address space beyond what is mapped now, where the system says how much that is."""
    try:
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
