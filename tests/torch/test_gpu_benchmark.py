"""The command that shows what only a GPU can, tried on the host: it runs, and a check that fails shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BENCHMARKS.exists(), reason="the benchmarks are not here")]


def run(*arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else [str(BENCHMARKS / "gpu.py")]), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=400)


def test_it_writes_what_it_finds(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--small", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    verdicts = {row["check"]: row["verdict"] for row in report["checks"]}
    assert len(verdicts) == 7
    assert set(verdicts.values()) == {"right", "left out"}
    assert {row["what"] for row in report["times"]} >= {"torch", "unixent"}
    assert "| [64, 1000] float32, both | unixent |" in (tmp_path / "gpu.md").read_text("utf-8")


def test_a_wrong_loss_ends_with_status_1(tmp_path: Path) -> None:
    code = """
import sys, torch, unixent
import gpu, gpu_checks

def off(x, y, reduction="mean", **options):
    return torch.nn.functional.cross_entropy(x, y, reduction=reduction) + 1

gpu_checks.unixent.cross_entropy = off
gpu_checks.CHECKS = (gpu_checks.rising_rows,)
gpu.jax_times = lambda *_: []
sys.exit(gpu.main())
"""
    done = run("--device", "cpu", "--small", "--out", tmp_path, code=code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "times the bound" in (tmp_path / "gpu.md").read_text("utf-8")
