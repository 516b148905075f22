"""Set up a checkout for work, with Python and pip alone: a virtual environment, the package editable, the commit hooks.

python tools/devenv.py                  # NumPy, the conformance suite, the examples, the developer tools
python tools/devenv.py torch            # and an extra of pyproject.toml: torch, jax, mindspore, mpi
python tools/devenv.py --path DIR       # instead of .venv
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up this checkout for work in a virtual environment.")
    parser.add_argument("extras", nargs="*", help="more extras of pyproject.toml: torch, jax, mindspore, mpi")
    parser.add_argument("--path", type=Path, default=ROOT / ".venv", help="where to make the environment")
    chosen = parser.parse_args()
    extras = ",".join(("conformance", "examples", *chosen.extras))
    venv.create(chosen.path, with_pip=True)
    programs = chosen.path.resolve() / ("Scripts" if os.name == "nt" else "bin")
    python = str(programs / "python")
    # Dependency groups need pip 25.1, which not every Python brings.
    commands = [
        [python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1"],
        [python, "-m", "pip", "install", "--quiet", "--editable", f".[{extras}]", "--group", "dev"],
    ]
    if (ROOT / ".git").exists():  # not in an unpacked source distribution
        commands.append([python, "-m", "pre_commit", "install"])
    for command in commands:
        print("+", *command, flush=True)
        subprocess.run(command, cwd=ROOT, check=True)
    print(f"\nReady. Activate it with: {'' if os.name == 'nt' else 'source '}{programs / 'activate'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
