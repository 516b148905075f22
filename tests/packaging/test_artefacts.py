"""What `python -m build` makes installs from disk with every extra: wheel and sdist, each into a new environment.

Extras that bring a framework are resolved, not installed (``pip install --dry-run``). Builds and downloads a good deal:
`python -m tox -e artefacts`.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")

pytest.importorskip("build", reason="needs build: pip install build")
pytestmark = pytest.mark.exhaustive
ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
PATTERNS = {"wheel": "*.whl", "sdist": "*.tar.gz"}
# What an extra without a framework is for, run with what it brings.
RUN = {
    "": ["-c", "import unixent, sys; assert unixent.cross_entropy([[0.0, 0.0]], [0]) and len(unixent.backends()) == 4"],
    "conformance": ["-m", "unixent", "conformance", "--backend", "numpy", "--quick", "--feature", "mask"],
    "mpi": ["-c", "import unixent, mpi4py"],
    "examples": ["-c", "import unixent, sklearn, matplotlib"],
}
# Other releases of torch bring CUDA, some GB that nothing here needs.
PINNED = ["torch==2.13.0"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is made from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, timeout=600)
    return folder


def install(built: Path, artefact: str, extra: str, folder: Path, *options: str) -> Path:
    """pip's installation of an artefact with an extra, or its plan of one; the new environment's Python."""
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    (path,) = built.glob(PATTERNS[artefact])
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(PINNED))
    command = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *options]
    subprocess.run([*command, f"unixent[{extra}] @ {path.as_uri()}"], check=True, timeout=900)
    return python


@pytest.mark.parametrize("artefact", PATTERNS)
@pytest.mark.parametrize("extra", RUN)
def test_it_installs_and_runs(built: Path, tmp_path: Path, artefact: str, extra: str) -> None:
    python = install(built, artefact, extra, tmp_path)
    subprocess.run([str(python), *RUN[extra]], check=True, timeout=300, cwd=tmp_path)


@pytest.mark.parametrize("artefact", PATTERNS)
@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - set(RUN)))
def test_its_frameworks_resolve(built: Path, tmp_path: Path, artefact: str, extra: str) -> None:
    install(built, artefact, extra, tmp_path, "--dry-run")
