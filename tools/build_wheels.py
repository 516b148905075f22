"""Build the wheels of every platform on this machine, by ziglang's cross-compiler: one for all versions of Python each.

python -m pip install build hatchling ziglang
python tools/build_wheels.py                    # all of TARGETS, into dist/
python tools/build_wheels.py linux              # those whose name has "linux" in it
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# zig's name of a platform and pip's. The oldest C library of Linux that NumPy's own wheels run on.
TARGETS = {
    "x86_64-linux-gnu.2.17": "manylinux2014_x86_64",
    "aarch64-linux-gnu.2.17": "manylinux2014_aarch64",
    "x86_64-linux-musl": "musllinux_1_2_x86_64",
    "aarch64-linux-musl": "musllinux_1_2_aarch64",
    "aarch64-macos.11.0": "macosx_11_0_arm64",
    "x86_64-windows-gnu": "win_amd64",
}


def main(wanted: list[str]) -> int:
    for triple, tag in TARGETS.items():
        if wanted and not any(word in triple for word in wanted):
            continue
        print(f"+ {tag}", flush=True)
        environment = {**os.environ, "UNIXENT_TARGET": f"{triple}={tag}"}
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(ROOT / "dist")]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
