"""A strictly typed program outside the project sees the wheel's types, and mypy objects where it misuses them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed here; the environment `type` runs this")
CONSUMER = Path(__file__).with_name("consumer.py").read_text("utf-8")


def check(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "consumer.py").write_text(program, "utf-8")
    # No configuration and no path of the checkout: only what is in site-packages counts.
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir=.cache", "consumer.py"]
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_strict_consumer_passes(tmp_path: Path) -> None:
    result = check(CONSUMER, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("unixent.cross_entropy([[0.0]], [0], label_smoothing='much')", "arg-type"),
        ("unixent.cross_entropy([[0.0]], [0], smoothing=0.1)", "call-arg"),
        ("unixent.CrossEntropyLoss(reduction=1)", "arg-type"),
        ("unixent.no_such_loss", "attr-defined"),
    ],
)
def test_misuse_is_an_error(wrong: str, code: str, tmp_path: Path) -> None:
    result = check(f"import unixent\n\n{wrong}\n", tmp_path)
    assert result.returncode == 1
    assert f"[{code}]" in result.stdout
