"""The composite GitHub Action, its script run as GitHub runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ACTION = (Path(__file__).resolve().parents[2] / "action.yml").read_text("utf-8")
SCRIPT = textwrap.dedent(ACTION.partition("run: |\n")[2])

LOSSES = """
import numpy as np
import unixent

def right(logits, target, **options):
    return unixent.cross_entropy(logits, target, **options)

def wrong(logits, target, **options):
    return np.asarray(7, logits.dtype)
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash, which GitHub's runners have")


def act(folder: Path, implementation: str, arguments: str) -> tuple[int, str, str]:
    """Exit code, output and summary of the step."""
    (folder / "mine.py").write_text(LOSSES, "utf-8")
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin" / "python"
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "utf-8")
        python.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "IMPLEMENTATION": implementation,
        "FRAMEWORK": "numpy",
        "ARGUMENTS": arguments,
        "REPORT": "a report",
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", SCRIPT]  # as for `shell: bash`
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr, (folder / "summary.md").read_text("utf-8")


@pytest.mark.parametrize(("name", "code"), [("right", 0), ("wrong", 1)])
def test_the_markdown_report_is_the_summary_of_the_step(tmp_path: Path, name: str, code: int) -> None:
    returned, output, summary = act(tmp_path, f"mine:{name}", "--quick --feature z-loss --feature mask")
    assert returned == code, output
    assert summary.startswith(f"## mine:{name}")
    assert "| z-loss |" in summary
    assert ("### silently wrong" in summary) == bool(code)
    assert (tmp_path / "a report" / "index.html").exists()


def test_arguments_are_parted_as_in_a_shell_and_nothing_else_is_touched(tmp_path: Path) -> None:
    """Names of features have spaces; in YAML a text may have several lines; a folder may have other files."""
    (tmp_path / "a report").mkdir()
    (tmp_path / "a report" / "README.md").write_text("mine", "utf-8")
    arguments = "--quick\n--feature 'class indices'\r\n--feature \"z-loss\"\n\n"
    returned, output, summary = act(tmp_path, "mine:right", arguments)
    assert returned == 0, output
    assert summary.startswith("## mine:right")
    assert "| class indices |" in summary
    assert "| z-loss |" in summary
    assert (tmp_path / "a report" / "README.md").read_text("utf-8") == "mine"


def test_what_cannot_be_run_says_so_in_the_summary(tmp_path: Path) -> None:
    returned, output, summary = act(tmp_path, "mine:absent; touch injected", "--quick")
    assert returned == 2, output
    assert "could not be run" in summary
    assert not (tmp_path / "injected").exists()


def test_no_input_is_text_of_a_script() -> None:
    """An expression in a script would be code that whoever sets the input writes."""
    scripts = [SCRIPT, *re.findall(r"^ +run: (.*)$", ACTION, re.MULTILINE)]
    assert not [script for script in scripts if "${{" in script]
    inputs = set(re.findall(r"^  ([\w-]+):\n    description", ACTION, re.MULTILINE))
    assert inputs == set(re.findall(r"inputs\.([\w-]+)", ACTION))
