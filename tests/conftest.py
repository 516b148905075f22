"""Wrong losses for the processes that tests start, processes that a signal ends, and the mutation score of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _mutants_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ini option `pythonpath` makes `unixent_mutants` importable here; a process that a test starts needs more."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "mutants"), prepend=os.pathsep)


#: A loss that says in the file `called` how often it was called.
SLOW_LOSS = """
import time
import numpy as np

def loss(logits, target, **options):
    time.sleep(0.05)
    open("called", "a").write("x")
    return np.asarray(7, logits.dtype)
"""


@pytest.fixture
def stopped_by(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs Python with some arguments beside a module `mine` that holds `SLOW_LOSS`, and sends a signal to it while it
    is at work; the exit code and what it said."""

    def run(number: signal.Signals, *arguments: str) -> tuple[int, str]:
        (tmp_path / "mine.py").write_text(SLOW_LOSS, "utf-8")
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Where these tests run in a shell's background, Ctrl-C is ignored, and so it would be by what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        called = tmp_path / "called"
        for _ in range(1200):
            if called.exists() and called.stat().st_size > 20:
                break
            time.sleep(0.05)
        if number is signal.SIGTERM:
            process.terminate()  # a supervisor, as CI has one, signals the command alone
        else:
            os.killpg(process.pid, number)  # a terminal the whole group
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    return run


def pytest_terminal_summary(terminalreporter: Any) -> None:
    outcomes = {
        outcome: sum(
            "mutants/" in report.nodeid and "::test_a_wrong_loss_is_caught" in report.nodeid
            for report in terminalreporter.getreports(outcome)
        )
        for outcome in ("passed", "failed")
    }
    total = sum(outcomes.values())
    if total:
        terminalreporter.write_line(f"mutation score: {outcomes['passed']} of {total} wrong implementations caught")
