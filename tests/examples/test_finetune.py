"""Fine-tuning, in transformers and in Flax: both losses learn the same, and ours in less memory."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason='needs the extra "examples"')
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = {"finetune": ("transformers", "accelerate"), "finetune_flax": ("optax", "flax")}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_fine_tuning_is_the_same_in_less_memory(tmp_path: Path, name: str) -> None:
    missing = [each for each in PROGRAMS[name] if importlib.util.find_spec(each) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    theirs, picture = PROGRAMS[name][0], tmp_path / "curves.png"
    command = [sys.executable, EXAMPLES / f"{name}.py", "--steps", "4", "--plot", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    number = r" +([\d.]+)"
    lines = re.findall(rf"^(\w+){3 * number} ms{number} MiB", done.stdout, re.MULTILINE)
    table = {run: [float(cell) for cell in cells] for run, *cells in lines}
    assert list(table) == [theirs, "unixent"], done.stdout
    for run in table.values():
        assert run[1] < run[0]
    assert table["unixent"][:2] == pytest.approx(table[theirs][:2], abs=1e-3)
    assert table["unixent"][3] < 0.8 * table[theirs][3]
    (apart,) = re.findall(r"between the curves: (\S+) nats", done.stdout)
    assert float(apart) < 1e-3
    assert re.search(r"trained a model from [\d.]+ to [\d.]+ nats", done.stdout)
    assert picture.read_bytes().startswith(b"\x89PNG")
