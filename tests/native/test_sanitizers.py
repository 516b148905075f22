"""The library compiled with AddressSanitizer and UndefinedBehaviorSanitizer takes hostile calls without a report."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_hostile_calls_touch_no_memory_but_their_own(tmp_path):
    gcc = shutil.which("gcc")
    runtime = None
    if gcc and sys.platform == "linux":
        runtime = subprocess.run(
            [gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
    if runtime is None or not Path(runtime).is_absolute():
        pytest.skip("needs gcc on Linux with its sanitizers")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    package = tmp_path / "unixent_native"
    shutil.copytree(ROOT / "backends" / "unixent_native", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    flags = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    hatch_build.compile_library(package, [gcc], sys.platform, platform.machine(), flags)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "LD_PRELOAD": runtime,
        # Python itself keeps memory to the end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
    }
    environment.pop("UNIXENT_NATIVE", None)
    environment.pop("PYTHONSAFEPATH", None)
    for script in ("hostile.py", "position_calls.py"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(HERE / script), "300"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert "300 calls as they should be" in done.stdout
