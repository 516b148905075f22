"""Several workers at once: the same report, in the same order, whatever becomes of a worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unixent_conformance import run
from unixent_conformance.isolation import Isolated, Task
from unixent_conformance.selection import Choice

FEATURES = ["class indices", "mask", "minus infinity", "z-loss"]

# Says which process answered, in the text of an error that nothing declares, and dies of two classes in half precision.
SUBJECT = """
import os, signal

def named(logits, target, **options):
    if logits.dtype == "float16" and logits.shape[-1] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError(f"process {os.getpid()}")
"""


def test_the_same_report_as_from_one_process() -> None:
    alone = run("numpy", features=FEATURES)
    assert run("numpy", features=FEATURES, jobs=3) == alone
    assert len(alone.cases) > 300


def test_each_worker_has_a_share_and_a_death_is_one_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "who.py").write_text(SUBJECT, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = run("who:named", "numpy", features=FEATURES, jobs=2)
    said = {r.detail for r in report.cases if "RuntimeError" in r.detail}
    assert len(said) > 1
    assert f"RuntimeError: process {os.getpid()}" not in said
    died = [r.id for r in report.cases if "SIGKILL" in r.detail]
    assert died
    assert all("two-classes/float16" in id for id in died)


# The first call of all takes its time; in the meantime another process has time for many others, but not for all.
SLOW_START = """
import os, time

def loss(logits, target, **options):
    try:
        os.close(os.open(__file__ + ".called", os.O_CREAT | os.O_EXCL))
        time.sleep(8)
    except FileExistsError:
        time.sleep(0.04)
    raise NotImplementedError
"""


def test_what_others_judged_meanwhile_is_reported_when_the_budget_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_START, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = run("slow:loss", "numpy", features=FEATURES, jobs=2, budget=3.5)
    assert len(report.cases) > 20
    assert report.left_out[0].endswith("cases, since 3.5 s were over")
    assert len({(r.id, r.mode) for r in report.cases}) == len(report.cases)


def test_a_short_run_starts_one() -> None:
    run_ = Isolated(Task("numpy", choice=Choice(quick=True, features=("batch invariance",))), None, jobs=4)
    results = iter(run_)
    assert next(results).feature == "batch invariance"
    results.close()
    assert len(run_._slots) == 1


@pytest.mark.parametrize("jobs", [0, -1])
def test_no_workers_are_an_error(jobs: int) -> None:
    with pytest.raises(ValueError, match="jobs: expected 1 or more"):
        run("numpy", jobs=jobs)


def test_what_only_this_process_has_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="jobs: a new process cannot import"):
        run(lambda logits, target: logits, "numpy", jobs=2)
