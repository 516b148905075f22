"""`python benchmarks/peers`, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
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
        (["scipy log_sofmax"], "no peer is called 'scipy log_sofmax'; did you mean scipy log_softmax"),
        (["--quick", "--feature", "nan"], "no such feature: nan; did you mean NaN"),
        (["--merge", __file__], "test_command.py: Extra data"),
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


STUDY = """
import sys
from pathlib import Path

import peers
from peers.command import study

peers.OWN = tuple(peers.Peer(name, "mine:loss", "numpy", ("numpy",)) for name in ("slow", "whole", "another"))
sys.exit(study(sys.argv[1:], merge=[Path("whole.json")], out=Path("out"), jobs=2))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to signal")
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
@pytest.mark.parametrize("first", ["slow", "whole"])
def test_a_study_that_is_stopped_writes_what_it_has(
    tmp_path: Path,
    stopped_by: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    name: str,
    code: int,
    first: str,
) -> None:
    """The peer under way as far as it came, unless a whole report of it is there, and none after it."""
    whole = Report("whole", "numpy", "1", (Result("a/b/value", "a", "eager", Verdict.MATCHES),))
    for file, text in {"run.py": STUDY, "whole.json": whole.to_json()}.items():
        (tmp_path / file).write_text(text, "utf-8")
    for folder in (Path(peers.__file__).parents[1], tmp_path):
        monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    returncode, output = stopped_by(number, "run.py", first, "another")
    assert (returncode, "Traceback" in output) == (code, False), output
    reports = {path.stem: Report.from_json(path.read_text("utf-8")) for path in (tmp_path / "out").glob("*.json")}
    assert sorted(reports) == sorted({first, "whole"})
    assert reports["whole"] == whole
    if first == "slow":
        assert reports["slow"].stopped == name
        assert len(reports["slow"].cases) > 3
        assert not reports["slow"].counts[Verdict.CRASHED]
    assert f'"name":"{first}"' in (tmp_path / "out" / "index.html").read_text("utf-8")
