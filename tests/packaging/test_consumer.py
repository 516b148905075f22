"""Strictly typed programs outside the project see the wheel's types, and both type checkers object to misuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
CHECKERS = {
    # No configuration and no path of the checkout: only what is in site-packages counts.
    "mypy": ["--strict", "--config-file=", "--cache-dir=../mypy_cache"],
    "pyright": ["--pythonpath", sys.executable, "--outputjson"],
}


@pytest.fixture(params=CHECKERS)
def checker(request: pytest.FixtureRequest) -> str:
    if not find_spec(request.param):
        pytest.skip(f"{request.param} is not installed here; the environment `type` runs this")
    return str(request.param)


def problems(checker: str, program: str, folder: Path) -> list[str]:
    """What the checker has against a program."""
    (folder / "consumer.py").write_text(program, "utf-8")
    command = [sys.executable, "-m", checker, *CHECKERS[checker], "consumer.py"]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    if checker == "pyright":
        return [f"{each['message']} [{each.get('rule')}]" for each in json.loads(done.stdout)["generalDiagnostics"]]
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if ": error:" in line]


def test_strictly_typed_programs_have_no_type_errors(checker: str, tmp_path: Path) -> None:
    assert problems(checker, (FOLDER / "consumer.py").read_text("utf-8"), tmp_path) == []


@pytest.mark.skipif(not find_spec("torch"), reason="torch is not installed here; the environment `type` runs this")
def test_tensors_in_are_tensors_out(checker: str, tmp_path: Path) -> None:
    program = (FOLDER / "consumer_torch.py").read_text("utf-8")
    assert problems(checker, program, tmp_path) == []
    assert problems(
        checker, program + "\nnumber: int = fused(torch.zeros(1), torch.zeros(1), torch.zeros(1))\n", tmp_path
    )


@pytest.mark.parametrize(
    ("wrong", "of_mypy", "of_pyright"),
    [
        ("unixent.cross_entropy([[0.0]], [0], label_smoothing='much')", "call-overload", "reportCallIssue"),
        ("unixent.cross_entropy([[0.0]], [0], reduction='average')", "call-overload", "reportCallIssue"),
        ("unixent.cross_entropy([[0.0]], [0], smoothing=0.1)", "call-overload", "reportCallIssue"),
        ("unixent.LossOptions('mean')", "call-arg", "reportCallIssue"),
        ("unixent.CrossEntropyLoss(reduction=1)", "call-overload", "reportCallIssue"),
        ("unixent.no_such_loss", "attr-defined", "reportAttributeAccessIssue"),
    ],
)
def test_misuse_is_a_type_error(wrong: str, of_mypy: str, of_pyright: str, checker: str, tmp_path: Path) -> None:
    code = of_mypy if checker == "mypy" else of_pyright
    assert any(f"[{code}]" in problem for problem in problems(checker, f"import unixent\n\n{wrong}\n", tmp_path))
