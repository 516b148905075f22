"""The kernel compiled for arm64 computes in an emulator what NumPy's operators do here."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from calls import check, check_share, random_call
from emulated import Emulator, build
from position_calls import check as check_statistics
from position_calls import random_position_call

from unixent_native.library import Library

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def arm64(tmp_path_factory):
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if shutil.which("aarch64-linux-gnu-gcc"):
        compiler = ["aarch64-linux-gnu-gcc"]
    elif importlib.util.find_spec("ziglang"):
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    else:
        compiler = None
    if qemu is None or compiler is None:
        pytest.skip("needs qemu-user, and aarch64-linux-gnu-gcc or ziglang")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    hatch_build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hatch_build)
    source = ROOT / "backends" / "unixent_native" / "source"
    emulator = Emulator([qemu, str(build(tmp_path_factory.mktemp("arm64"), source, compiler, hatch_build.FLAGS))])
    yield emulator
    emulator.close()
    assert emulator.process.returncode == 0


@pytest.mark.parametrize("seed", range(4))
def test_arm64_computes_what_numpy_does(arm64, seed):
    assert arm64.isa == "neon"
    library = Library(arm64.rows, arm64.statistics, *[None] * 5, (arm64.isa,), 0)
    for i in range(50):
        rng = np.random.default_rng(9000 + 1000 * seed + i)
        call = random_call(rng)
        check(library, call)
        check_share(library, call, rng)
        check_statistics(library, random_position_call(rng))
