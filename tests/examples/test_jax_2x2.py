"""The classifier on a mesh of four devices learns, split over data x classes, what it learns on one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax", reason='needs the extra "jax"')
pytest.importorskip("sklearn", reason='needs the extra "examples"')
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "parallel" / "jax_2x2.py"


def test_training_over_a_mesh_matches_one_device() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--steps", "20"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (curve,) = re.findall(r"loss ([\d.]+) -> ([\d.]+), as alone", done.stdout)
    assert float(curve[1]) < float(curve[0]) / 2
    assert "'classifier': (5, 32)" in done.stdout


def test_a_process_count_that_does_not_divide_is_one_line_of_error() -> None:
    command = [sys.executable, str(SCRIPT), "--processes", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "a number of processes that divides 4" in done.stderr
    assert "Traceback" not in done.stderr
