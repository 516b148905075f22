"""The language model learns the same with either loss, says so, and draws it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason='needs the extra "torch"')
pytest.importorskip("matplotlib", reason='needs the extra "examples"')
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "charlm.py"


def test_both_losses_learn_the_same(tmp_path: Path) -> None:
    picture = tmp_path / "charlm.png"
    command = [sys.executable, SCRIPT, "--steps", "10", "--vocabulary", "0", "--fused", "--output", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    curves = {
        name: [float(nats) for nats in re.findall(rf"^{name} +\d+ +([\d.]+)", done.stdout, re.MULTILINE)]
        for name in ("torch", "unixent", "fused")
    }
    assert len(curves["unixent"]) == 2
    assert curves["unixent"][-1] < curves["unixent"][0] - 1
    assert curves["unixent"] == pytest.approx(curves["torch"], abs=1e-3)
    assert curves["fused"] == pytest.approx(curves["torch"], abs=1e-3)
    held = {name: float(size) for name, size in re.findall(r"(\w+) ([\d.]+) MiB", done.stdout)}
    assert held["fused"] < held["torch"]
    assert picture.read_bytes().startswith(b"\x89PNG")
