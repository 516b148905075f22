"""`python benchmarks/peers`, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import peers
from unixent_conformance.results import Report, Result, Verdict


def study(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(peers.__file__).parent), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no such peer"], "expected one of 'torch cross_entropy'"),
        (["--merge", "no-such.json"], "no-such.json"),
        (["--quik"], "--quick"),
    ],
)
def test_mistakes_at_the_prompt_end_with_one_line(arguments: list[str], said: str) -> None:
    done = study(*arguments)
    output = " ".join((done.stdout + done.stderr).split())
    assert (done.returncode, "Traceback" in output) == (2, False), output
    assert said in output


def test_reports_of_other_environments_join_the_page(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="needs a peer that is quick: scipy")
    other = Report("elsewhere", "numpy", "1", (Result("a/b/value", "a", "eager", Verdict.MATCHES),))
    (tmp_path / "other.json").write_text(other.to_json(), "utf-8")
    options = ["--merge", "other.json", "--quick", "--feature", "class indices", "--report", "out"]
    done = study("scipy log_softmax", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert '"name":"elsewhere"' in page
    assert '"name":"scipy log_softmax"' in page


def test_unixents_own_backends_are_among_the_columns(tmp_path: Path) -> None:
    options = ["--quick", "--feature", "z-loss", "--report", "out"]
    done = study("unixent numpy", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"name":"unixent numpy"' in (tmp_path / "out" / "index.html").read_text("utf-8")
    assert [peer.name for peer in peers.OWN] == [f"unixent {name}" for name in ("numpy", "torch", "jax", "mindspore")]
