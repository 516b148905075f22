"""What the compiler makes of the programs for GPUs that are not here: nothing leaves the registers, loads are wide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("architecture", [90, 80, 100])
def test_programs_keep_to_registers_and_read_vectors(architecture: int) -> None:
    script = Path(__file__).parent / "compile_programs.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(script), str(architecture)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert not done.returncode, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert len(results) >= 50
    for name, used in results.items():
        assert used["stack"] == used["local"] == 0, f"{name}: spills, {used}"
        assert not used["atomics"], (name, used)
        assert not used["approximate_logarithms"] + used["rough_divisions"], (name, used)
        if "tiles" in name and "stride 1" in name:
            assert used["vector_loads"], f"{name}: scalar loads, {used}"
        if "gradient_tiles" in name and "stride 1" in name:
            assert used["vector_stores"], f"{name}: scalar stores, {used}"
