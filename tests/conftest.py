"""The mutation score, where whoever reads the end of a run finds it."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    outcomes = {
        outcome: sum("test_mutants.py::test_caught" in report.nodeid for report in terminalreporter.getreports(outcome))
        for outcome in ("passed", "failed")
    }
    total = sum(outcomes.values())
    if total:
        terminalreporter.write_line(f"mutation score: {outcomes['passed']} of {total} wrong implementations caught")
