"""The kernel example: what docs/kernels.md quotes is what the suite says of the planted bug."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FEATURES = ("class indices", "ignore_index", "no positions")


@pytest.mark.skipif(
    os.environ.get("TOX_ENV_NAME", "numpy") != "numpy", reason="no framework's: runs once, in the environment `numpy`"
)
def test_the_page_quotes_the_verdicts(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "examples" / "kernel", tmp_path / "kernel"))
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", "libxent.so", "xent.c", "-lm"], cwd=folder, check=True)
    command = [sys.executable, "-m", "unixent", "conformance", "--implementation", "xent:kernel", "--quick"]
    command += [word for feature in FEATURES for word in ("--feature", feature)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    page, _, _ = (ROOT / "docs" / "kernels.md").read_text("utf-8").partition("## Transforms")  # of another kernel
    quoted = re.findall(r"^```text\n((?:silently wrong|crashed) .*?)^```$", page, re.M | re.S)
    assert len(quoted) == 2
    for text in quoted:
        assert text in done.stdout


def test_the_page_quotes_the_line_with_the_bug() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text("utf-8")
    (line,) = re.findall(r"^const double scale = .*;$", page, re.M)
    assert line in (ROOT / "examples" / "kernel" / "xent.c").read_text("utf-8")
