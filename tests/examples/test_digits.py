"""The example learns, tells what it learns, draws it, and takes the same steps on every backend that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import unixent

pytest.importorskip("sklearn", reason='needs the extra "examples"')
pytest.importorskip("matplotlib", reason='needs the extra "examples"')
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "digits.py"
INSTALLED = [
    status.name for status in unixent.backends() if status.installed and status.name in ("torch", "jax", "mindspore")
]


def digits(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300)


def curve(backend: str, picture: Path) -> dict[int, tuple[float, float]]:
    """Loss and accuracy (per cent) by epoch, as printed."""
    done = digits("--backend", backend, "--epochs", "10", "--output", str(picture))
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("accuracy\n")[1].split("\n\n")[0]
    rows = [line.split() for line in table.splitlines()]
    return {int(epoch): (float(loss), float(accuracy.rstrip("%"))) for epoch, loss, accuracy in rows}


@pytest.fixture(scope="module")
def on_numpy(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[float, float]]:
    return curve("numpy", tmp_path_factory.mktemp("digits") / "numpy.png")


only_in_numpy = pytest.mark.skipif(
    os.environ.get("TOX_ENV_NAME", "numpy") != "numpy", reason="no framework's: runs once, in the environment `numpy`"
)


@pytest.mark.parametrize("backend", [pytest.param("numpy", marks=only_in_numpy), *INSTALLED])
def test_it_learns_the_same_on_every_backend(
    backend: str, on_numpy: dict[int, tuple[float, float]], tmp_path: Path
) -> None:
    epochs = curve(backend, tmp_path / "curve.png")
    assert list(epochs) == [1, 5, 10]
    assert epochs[10][0] < 0.2 < epochs[1][0]
    assert epochs[10][1] > 95
    for epoch, (loss, accuracy) in epochs.items():
        # Printed to four digits; rounding differs between frameworks' matrix products.
        assert loss == pytest.approx(on_numpy[epoch][0], abs=2e-4)
        assert accuracy == pytest.approx(on_numpy[epoch][1], abs=0.6)
    picture = (tmp_path / "curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(picture[16:20], "big") == 1104


def test_an_unknown_backend_is_one_line_of_error() -> None:
    done = digits("--backend", "nunpy")
    assert done.returncode == 2
    assert "got 'nunpy'" in done.stderr
    assert "Traceback" not in done.stderr
