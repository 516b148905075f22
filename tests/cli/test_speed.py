"""What a quick run costs its user."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

TORCHS_OWN = """
import torch.nn.functional as F

def loss(logits, target, *, weight=None, reduction="mean", ignore_index=-100, label_smoothing=0.0):
    return F.cross_entropy(
        logits, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
"""

# Twenty seconds of two cores.
CPU_SECONDS = 40


@pytest.mark.skipif(not find_spec("torch"), reason="needs torch")
@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no account of the time of processes that a process started")
def test_a_quick_run_of_torchs_own_loss_takes_twenty_seconds_of_two_cores(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(TORCHS_OWN, "utf-8")
    before = os.times()
    command = [
        sys.executable,
        "-m",
        "unixent",
        "conformance",
        "--implementation",
        "mine:loss",
        "--quick",
        "--jobs",
        "2",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    after = os.times()
    assert "judged by mode: eager" in done.stdout, done.stdout + done.stderr
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < CPU_SECONDS, f"{spent:.1f} s of CPU"
