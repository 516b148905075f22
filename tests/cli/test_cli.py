"""The command line as a person meets it: a fresh process, its output, its exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import unixent
from unixent_conformance.cases import catalogue

SILENTLY_WRONG = """
import numpy as np

def loss(logits, target):
    return np.asarray(7, logits.dtype)
"""


DIES_ONCE = """
import os
import numpy as np

def loss(logits, target, **options):
    if logits.shape[-1] == 1000:
        os._exit(9)
    return np.asarray(7, logits.dtype)
"""


def unixent_command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unixent", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def complaint(*arguments: str, cwd: Path | None = None) -> str:
    """The answer to a mistake at the prompt: exit code 2, no traceback."""
    done = unixent_command(*arguments, cwd=cwd)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("split", option) for option in ("--linear", "--strict", "--isolate", "--jobs")),
        *(("compare", option) for option in ("--linear", "--strict", "--isolate", "--framework")),
        *(("run", option) for option in ("--thorough", "--merge")),
    ],
)
def test_every_option_of_a_command_has_an_effect(command: str, option: str) -> None:
    assert f"No such option: {option}" in complaint("conformance", command, option)


def test_version_names_unixent_numpy_and_python() -> None:
    done = unixent_command("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"unixent {unixent.__version__} (NumPy {np.__version__}")


def test_the_installed_script_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("unixent")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout == unixent_command("--version").stdout


def test_backends_lists_every_backend_with_a_hint_for_what_is_missing() -> None:
    done = unixent_command("backends")
    assert done.returncode == 0, done.stderr
    for status in unixent.backends():
        line = next(line for line in done.stdout.splitlines() if re.match(rf"{status.name}\s", line))
        assert (status.version or "-") in line
        if not status.installed and status.hint is not None:
            assert status.hint in " ".join(done.stdout.split())
    assert "float16, bfloat16, float32, float64" in done.stdout


def test_the_embedded_backend_passes_its_quick_cases() -> None:
    done = unixent_command("conformance", "--backend", "numpy", "--quick", "--feature", "class probabilities")
    assert done.returncode == 0, done.stdout
    assert "class probabilities" in done.stdout


def test_a_wrong_callable_in_the_working_directory_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SILENTLY_WRONG, "utf-8")
    arguments = ["--implementation", "mine:loss", "--quick", "--feature", "class indices"]
    done = unixent_command("conformance", *arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "silently wrong" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["conformance", "--backend", "nunpy"], "expected one of 'jax', 'mindspore', 'numpy'"),
        (["conformance", "--implementation", "no_such_module:loss"], "No module named 'no_such_module'"),
        (["conformance", "--implementation", "numpy"], "module:function"),
        (["conformance", "--implementation", "numpy:no_such"], "no_such"),
        (["conformance", "--backend", "numpy", "--feature", "no such feature"], "no such feature"),
        (["conformance", "--quik"], "--quick"),
        (["conformance", "--backend", "numpy", "--modes", "eager,jit"], "no such mode: jit; expected eager"),
        (["conformance", "--backend", "numpy", "--dtype", "float8"], "no such dtype: float8"),
        (["conformance", "--backend", "numpy", "--skip", "nothing/*"], "no case or feature matches 'nothing/*'"),
        (["conformance", "--backend", "numpy", "--xfails", "no-such-file"], "no-such-file"),
        (["conformance", "--backend", "numpy", "--device", "cuda:0"], "numpy has its arrays where it puts them"),
        (["conformance", "compare", "numpy"], "expected two or more different implementations; got numpy"),
        (["conformance", "compare", "numpy", "nunpy"], "expected one of 'jax', 'mindspore', 'numpy'"),
        (["conformance", "comapre", "numpy"], "Did you mean 'compare'?"),
        (["conformance", "split", "2by2"], "expected DATAxMODEL, as 2x2; got '2by2'"),
        (["conformance", "list", "cases", "--feature", "no such feature"], "no such feature"),
        (["conformance", "list", "modes", "no_such_framework"], "no harness is called 'no_such_framework'"),
        (["bakends"], "Did you mean 'backends'?"),
        (["conformance", "--backend", "numpy", "--timeout", "-1"], "Invalid value for '--timeout'"),
        (["conformance", "--backend", "numpy", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["conformance", "--backend", "numpy", "--framework", "nope"], "no harness is called 'nope'"),
    ],
)
def test_mistakes_at_the_prompt_end_with_one_line(arguments: list[str], said: str) -> None:
    assert said in complaint(*arguments)


def test_run_is_the_default_command() -> None:
    arguments = ("--backend", "numpy", "--feature", "mask", "--quick")
    default, named = unixent_command("conformance", *arguments), unixent_command("conformance", "run", *arguments)
    assert (default.returncode, default.stdout) == (0, named.stdout)


def test_list_shows_every_feature_and_case_and_mode() -> None:
    everything = catalogue()
    features, cases, modes = (
        unixent_command("conformance", "list", *words).stdout
        for words in ((), ("cases", "--feature", "mask", "--feature", "z-loss"), ("modes", "numpy"))
    )
    assert all(f" {feature} " in features for feature in {case.feature for case in everything})
    assert f" {len(everything)} " in features
    assert cases.split() == [case.id for case in catalogue(features=("mask", "z-loss"))]
    assert re.search(r"numpy +eager +\d+ +\d+", modes)


def test_list_shows_verdicts_and_dialects_and_dtypes() -> None:
    verdicts, dialects, dtypes = (
        unixent_command("conformance", "list", word).stdout for word in ("verdicts", "dialects", "dtypes")
    )
    assert all(word in verdicts for word in ("matches", "dialect", "refuses", "silently wrong", "crashed"))
    assert re.search(r"mean over all positions +mean = Σ ℓₙ / N", dialects)
    assert re.search(r"bfloat16 +\d+", dtypes)


def test_a_run_is_of_the_chosen_modes_and_dtypes_and_known_failures_are_none(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SILENTLY_WRONG, "utf-8")
    id = "class-indices/plain/float32-mean/value"
    (tmp_path / "known.txt").write_text(f"mine:loss-eager-{id} # always 7\n", "utf-8")
    arguments = ["--implementation", "mine:loss", "--modes", "eager", "--dtype", "float32", "--skip", "*gradient*"]
    skipped = [f"--skip={case.feature}" for case in {c.feature: c for c in catalogue()}.values()]
    skipped.remove("--skip=class indices")
    arguments += [*skipped, "--skip", "class-indices/[tmw]*", "--skip", "*/*/float32-[ns]*", "--xfails", "known.txt"]
    done = unixent_command("conformance", *arguments, cwd=tmp_path)
    assert "nothing matches" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 2
    assert unixent_command("conformance", *arguments[:-2], cwd=tmp_path).returncode == 1


def test_peers_say_where_the_study_is(tmp_path: Path) -> None:
    assert "run this in a checkout" in complaint("conformance", "peers", cwd=tmp_path)
    checkout = Path(__file__).resolve().parents[2]
    assert "expected one of 'torch cross_entropy'" in complaint("conformance", "peers", "no such peer", cwd=checkout)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_the_command_line_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from unixent.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"unixent: the command line needs {missing}: pip install ")
    assert f' "{missing}>=' in done.stderr


def test_a_syntax_error_of_the_user_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def loss(:\n", "utf-8")
    assert "mine.py:1" in complaint("conformance", "--implementation", "mine:loss", cwd=tmp_path)


def test_reports_name_the_case_in_which_a_callable_dies(tmp_path: Path) -> None:
    """One case is lost, the run goes on, and the reports say which."""
    (tmp_path / "mine.py").write_text(DIES_ONCE, "utf-8")
    arguments = ["--implementation", "mine:loss", "--quick", "--feature", "class indices", "--report", "out"]
    done = unixent_command("conformance", *arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"mine-loss.{x}" for x in ("json", "xml", "md")} | {
        "index.html"
    }
    counts = json.loads((tmp_path / "out" / "mine-loss.json").read_text("utf-8"))["counts"]
    assert counts["crashed"] > 0
    assert counts["silently wrong"] > 0


@pytest.mark.parametrize("command", ["run", "split 1x2", "compare", "peers"])
@pytest.mark.parametrize("place", ["taken", "taken/report"])
def test_a_report_that_cannot_be_written_is_said_before_the_run(tmp_path: Path, command: str, place: str) -> None:
    (tmp_path / "taken").write_text("a file", "utf-8")
    checkout = Path(__file__).resolve().parents[2]
    cwd, where = (checkout, tmp_path / place) if command == "peers" else (tmp_path, place)
    said = complaint("conformance", *command.split(), "--report", str(where), cwd=cwd)
    assert "cannot write to" in said
    assert "cases" not in said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to signal")
@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
@pytest.mark.parametrize("isolation", ["--isolate --jobs=2", "--isolate --jobs=1", "--no-isolate"])
def test_a_run_that_is_stopped_reports_what_it_has(
    tmp_path: Path,
    stopped_by: Callable[..., tuple[int, str]],
    number: signal.Signals,
    name: str,
    code: int,
    isolation: str,
) -> None:
    """As a terminal does, the signal goes to the whole group: no case has crashed by it."""
    arguments = ["conformance", "--implementation", "mine:loss", *isolation.split(), "--report", "out"]
    returncode, output = stopped_by(number, "-m", "unixent", *arguments)
    assert returncode == code, output
    assert f"stopped by {name}" in output
    assert "Traceback" not in output
    report = json.loads((tmp_path / "out" / "mine-loss.json").read_text("utf-8"))
    assert report["stopped"] == name
    assert not report["ok"]
    cases = {(case["id"], case["mode"]) for case in report["cases"]}
    assert len(cases) == len(report["cases"]) > 3
    assert report["counts"]["crashed"] == 0
    assert f"since the run was stopped by {name}" in report["left_out"][0]
    assert (tmp_path / "out" / "index.html").exists()
