"""What a person gets wrong at the prompt, and what the prompt makes of it: one line that helps, exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unixent_conformance.model import Tier
from unixent_conformance.split.command import Request

LOSS = """
import os
import unixent

def loss(logits, target, *, reduction="mean"):
    return unixent.cross_entropy(logits, target, reduction=reduction)

def forks(logits, target, *, reduction="mean"):
    os.fork()
    return loss(logits, target, reduction=reduction)

class M:
    pass

class Losses:
    plain = staticmethod(loss)
"""
NAN = ("--quick", "--feature", "NaN")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    for name, text in {
        "mine": LOSS,
        "divides": "1 / 0",
        "runs": "raise RuntimeError('no driver')",
        "ends": "import sys; sys.exit(3)",
        "spells": "{}['x']",
    }.items():
        (folder / f"{name}.py").write_text(text, "utf-8")
    return folder


def conformance(here: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unixent_conformance", *arguments]
    env = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", **environment}
    return subprocess.run(
        command, cwd=here, env=env, capture_output=True, text=True, encoding=env["PYTHONIOENCODING"], timeout=300
    )


def complaint(here: Path, *arguments: str) -> str:
    done = conformance(here, *arguments)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 2, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("isolation", ["--isolate", "--no-isolate"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("divides:loss", "ZeroDivisionError: division by zero"),
        ("runs:loss", "RuntimeError: no driver"),
        ("ends:loss", "SystemExit: 3"),
        ("spells:loss", "KeyError: 'x'"),
        ("mine:M", "expected a function or an instance; got the class M"),  # no emoji
        ("mine:los", "mine has no los; did you mean loss"),
        ("sub/mine.py:loss", "expected a module as import takes it, sub.mine:loss; got a file"),
        ("./mine.py:loss", "expected a module as import takes it, mine:loss; got a file"),
    ],
)
def test_what_cannot_be_loaded_is_said_alike_in_every_process(here: Path, path: str, said: str, isolation: str) -> None:
    assert f"error {path}: " in (text := complaint(here, "--implementation", path, isolation))
    assert said in text


@pytest.mark.parametrize("isolation", ["--isolate", "--no-isolate"])
def test_an_unknown_name_brings_those_that_it_resembles(here: Path, isolation: str) -> None:
    """In the same words whether a worker says it or this process."""
    said = complaint(here, "numpy", "--feature", "nan", isolation)
    assert said == "error numpy: features: no such feature: nan; did you mean NaN, empty mean of NaN?"
    said = complaint(here, "numpy", "--feature", "reductions", isolation)
    assert said.endswith("no such feature: reductions; they are listed by unixent conformance list features")
    said = complaint(here, "numpy", "--skip", "soft-cap", isolation)
    assert "skip: no case or feature matches 'soft-cap'; did you mean softcap" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--feature", ","), "expected a name; got ','"),
        (("--modes", ""), "expected a name; got ''"),
        (("--no-isolate", "--jobs", "2"), "it takes no --jobs 2"),
        (("--xfails", "."), "is a directory"),
        (("--report", "x" * 300), "File name too long"),
        (("--framework", "torhc"), "no harness is called 'torhc'"),
    ],
)
def test_options_that_mean_nothing_are_mistakes(here: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in complaint(here, "numpy", *arguments)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{id} # x", "known.txt: NaN/at-the-target/float32-none/value: expected an implementation and a mode"),
        ("eager-{id} # x", "value: expected an implementation and a mode before the id, as mine:loss-eager-"),
        ("mine:loss-autograd-{id} # x", "not asked of numpy, whose modes are eager: autograd-NaN/at"),
        ("mine:loss-eager-NaN/at-the-targte/float32-none/value # x", "did you mean NaN/at-the-target/"),
    ],
)
def test_a_known_failure_that_can_never_come_is_a_mistake(here: Path, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "known.txt").write_text(line.format(id="NaN/at-the-target/float32-none/value"), "utf-8")
    assert said in complaint(here, "--implementation", "mine:loss", *NAN, "--xfails", str(tmp_path / "known.txt"))


def test_known_failures_may_be_of_other_runs(here: Path, tmp_path: Path) -> None:
    """Of another implementation, or of cases that this run leaves out; Windows' editors begin a file with a mark."""
    lines = "other:x-eager-NaN/at-the-target/float32-none/value # x\nmine:loss-eager-mask/bool/float32-mean/value # y\n"
    (tmp_path / "known.txt").write_text(lines, "utf-8-sig")
    done = conformance(here, "--implementation", "mine:loss", *NAN, "--xfails", str(tmp_path / "known.txt"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_of_no_case_says_so(here: Path) -> None:
    done = conformance(here, "numpy", *NAN, "--skip", "NaN", "--report", "none")
    assert done.returncode == 2
    assert "0 of 0 cases judged\n" in done.stdout
    assert "nothing matches: no case is all that was asked for" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--unixent-skip", "*"], "no case is all that was asked for"),
        (["--unixent-budget", "-1"], "expected seconds; got -1"),
        (["--unixent-budget", "nan"], "expected seconds; got nan"),
        (["--unixent-modes", "eager,", "--unixent-dtype", "float32,float8"], "no such dtype: float8"),
    ],
)
def test_a_run_of_pytest_that_judges_nothing_is_no_success(here: Path, options: list[str], said: str) -> None:
    plugin = ["-p", "no:cacheprovider", "--pyargs", "unixent_conformance", "-p", "unixent_conformance.plugin"]
    command = [sys.executable, "-m", "pytest", *plugin, "--unixent-backend", "numpy", "--unixent-quick", *options]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode in (2, 4), done.stdout
    assert said in done.stdout + done.stderr


def test_names_may_stand_in_one_option_or_in_several_and_count_once(here: Path) -> None:
    one = conformance(here, "numpy", "numpy", "--quick", "--feature", "softcap, z-loss", "--dtype", "float16,float32,")
    several = ("--feature", "softcap", "--feature", "z-loss", "--dtype", "float16", "--dtype", "float32")
    assert one.returncode == 0, one.stdout + one.stderr
    assert one.stdout == conformance(here, "numpy", "--quick", *several).stdout
    assert one.stdout.count("numpy (") == 1


def test_a_name_may_have_dots_as_an_entry_point_has(here: Path) -> None:
    assert conformance(here, "--implementation", "mine:Losses.plain", *NAN).returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("isolation", ["--isolate", "--no-isolate"])
def test_a_loss_that_forks_is_judged_once_a_case(here: Path, isolation: str) -> None:
    """Its child returns from the call, too: it neither answers in its parent's place nor goes on with the run."""
    run = conformance(here, "--implementation", "mine:forks", *NAN, isolation)
    plain = conformance(here, "--implementation", "mine:loss", *NAN, isolation)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.replace("mine:forks", "mine:loss") == plain.stdout


@pytest.mark.parametrize("seconds", ["1e12", "inf"])
def test_a_limit_may_be_beyond_every_clock(here: Path, seconds: str) -> None:
    assert conformance(here, "numpy", *NAN, "--isolate", "--timeout", seconds).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("arguments", [("list", "dialects"), ("numpy", *NAN)], ids=lambda words: words[0])
def test_any_encoding_shows_what_it_can(here: Path, encoding: str, arguments: tuple[str, ...]) -> None:
    done = conformance(here, *arguments, PYTHONIOENCODING=encoding, COLUMNS="40")
    assert done.returncode == 0, done.stderr
    assert "+ matches" in done.stdout or arguments[0] == "list"


def test_a_report_that_cannot_be_written_after_all_costs_no_verdict(here: Path) -> None:
    (here / "taken" / "index.html").mkdir(parents=True)
    done = conformance(here, "numpy", *NAN, "--report", "taken")
    assert done.returncode == 2
    assert "ok: nothing silently wrong" in done.stdout
    assert "cannot write the report: " in done.stdout


def test_a_split_run_says_what_is_unknown_before_it_starts(here: Path) -> None:
    said = complaint(here, "split", "1x2", "numpy", "--feature", "nan")
    assert said == "error numpy: features: no such feature: nan; did you mean NaN, empty mean of NaN?"


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("features", [None, ("mask",)])
def test_the_processes_of_a_split_run_are_asked_what_was_asked(tier: Tier, features: tuple[str, ...] | None) -> None:
    """A tier that had become a number was no tier, and a whole run had no case."""
    request = Request("numpy", "numpy", 1, 2, None, features, tier)
    again = Request.from_json(request.to_json())
    assert again == request
    assert again.tier is tier


def test_a_mistake_leaves_no_folder_for_its_report(here: Path) -> None:
    complaint(here, "numpy", "--feature", "no such", "--report", "new/folder")
    assert not (here / "new").exists()


def test_a_fused_linear_form_of_ours_is_well_seen_as_a_loss_of_logits(here: Path) -> None:
    """Errors may name what stands for the logits; one position is cut out of every argument, and only where no error is
    due."""
    features = "bad input,num_classes,statistics"
    done = conformance(here, "numpy", "--linear", "--quick", "--feature", features, "--dtype", "float32")
    assert done.returncode == 0, done.stdout
    done = conformance(here, "numpy", "--linear", "--quick", "--feature", "bad input")
    assert done.returncode == 0, done.stdout
