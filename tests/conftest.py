"""Wrong losses for the processes that tests start, and the mutation score at the end of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _mutants_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ini option `pythonpath` makes `unixent_mutants` importable here; a process that a test starts needs more."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "mutants"), prepend=os.pathsep)


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
