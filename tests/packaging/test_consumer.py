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


@pytest.fixture(params=CHECKERS, scope="module")
def checker(request: pytest.FixtureRequest) -> str:
    if not find_spec(request.param):
        pytest.skip(f"{request.param} is not installed here; the environment `type` runs this")
    return str(request.param)


def problems(checker: str, program: str, folder: Path) -> list[str]:
    """What the checker has against a program, with the line and the name of each error."""
    (folder / "consumer.py").write_text(program, "utf-8")
    command = [sys.executable, "-m", checker, *CHECKERS[checker], "consumer.py"]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    if checker == "pyright":
        each = json.loads(done.stdout)["generalDiagnostics"]
        return [f"consumer.py:{e['range']['start']['line'] + 1}: {e['message']} [{e.get('rule')}]" for e in each]
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


# What is wrong, and the error that each checker has for it.
MISUSE = {
    "unixent.cross_entropy([[0.0]], [0], label_smoothing='much')": ("call-overload", "reportCallIssue"),
    "unixent.cross_entropy([[0.0]], [0], reduction='average')": ("call-overload", "reportCallIssue"),
    "unixent.cross_entropy([[0.0]], [0], smoothing=0.1)": ("call-overload", "reportCallIssue"),
    "unixent.LossOptions('mean')": ("call-arg", "reportCallIssue"),
    "unixent.CrossEntropyLoss(reduction=1)": ("call-overload", "reportCallIssue"),
    "unixent.no_such_loss": ("attr-defined", "reportAttributeAccessIssue"),
}


@pytest.fixture(scope="module")
def of_misuse(checker: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the checker has against all of it, a line each: starting a checker takes seconds."""
    return problems(checker, "\n".join(["import unixent", *MISUSE]), tmp_path_factory.mktemp(checker))


@pytest.mark.parametrize("wrong", MISUSE)
def test_misuse_is_a_type_error(wrong: str, checker: str, of_misuse: list[str]) -> None:
    line, code = 2 + list(MISUSE).index(wrong), MISUSE[wrong][checker == "pyright"]
    assert any(f"consumer.py:{line}:" in problem and f"[{code}]" in problem for problem in of_misuse)
