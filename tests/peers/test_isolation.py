"""A segfault, an exit or a hang costs one case, not the run."""

from __future__ import annotations

import os
import re

import pytest

from unixent_conformance import run
from unixent_conformance.api import importable
from unixent_conformance.results import Report, Verdict

INDICES = ["class indices"]


def crashes(report: Report) -> dict[str, str]:
    return {r.id: r.detail for r in report.cases if r.verdict is Verdict.CRASHED}


def test_a_worker_gives_the_verdicts_of_this_process() -> None:
    isolated = run("subjects:right", "numpy", features=INDICES, quick=True)
    here = run("subjects:right", "numpy", features=INDICES, quick=True, isolate=False)
    assert isolated == here
    assert isolated.counts[Verdict.MATCHES] > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dies", "SIGSEGV"),
        ("quits", "exit code 3: out of memory"),
        ("hangs", "no answer in 2 s"),
        ("exits", "SystemExit: no device, raised by the implementation"),
        ("interrupts", "KeyboardInterrupt: no patience, raised by the implementation"),
    ],
)
def test_a_case_that_ends_its_process_costs_no_other(name: str, said: str) -> None:
    report = run(f"subjects:{name}", "numpy", features=INDICES, quick=True, timeout=2)
    sound = run("subjects:right", "numpy", features=INDICES, quick=True)
    bad = crashes(report)
    assert bad, report.counts
    assert all("wide" in id and said in detail for id, detail in bad.items()), bad
    assert [r for r in report.cases if r.id not in bad] == [r for r in sound.cases if r.id not in bad]
    assert [r.id for r in report.cases] == [r.id for r in sound.cases]
    assert not report.ok


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_ends_though_a_process_that_a_case_started_goes_on() -> None:
    assert run("subjects:forks", "numpy", features=INDICES, quick=True, timeout=20).ok


@pytest.mark.parametrize("name", ["disturbs", "torchs_names", "passes_all_on", "module"])
def test_a_right_loss_may_be_written_in_many_ways(name: str) -> None:
    sound = run("subjects:right", "numpy", features=[*INDICES, "label smoothing"], quick=True)
    report = run(f"subjects:{name}", "numpy", features=[*INDICES, "label smoothing"], quick=True)
    assert [(r.id, r.verdict) for r in report.cases] == [(r.id, r.verdict) for r in sound.cases]


def test_a_class_is_no_implementation() -> None:
    with pytest.raises(ImportError, match="a function or an instance; got the class Module"):
        run("subjects:Module", "numpy", features=INDICES)


def test_lines_to_paste_name_the_implementation() -> None:
    report = run("subjects:quits", "numpy", features=INDICES, quick=True)
    repro = next(r.repro for r in report.cases if r.verdict is Verdict.CRASHED)
    assert "uc.subject('subjects:quits', 'numpy', 'eager')" in repro
    compile(repro, "repro", "exec")


def test_a_feature_is_given_up_after_several_deaths_in_a_row() -> None:
    report = run("subjects:always_dies", "numpy", features=["axis and shape"], quick=True)
    details = list(crashes(report).values())
    assert len(details) == sum(r.verdict is not Verdict.REFUSES for r in report.cases)
    assert any(re.match("not run: 5 cases in a row ended the process; the last (died|ended)", each) for each in details)


def test_printed_output_is_not_taken_for_a_result() -> None:
    report = run("subjects:chatty", "numpy", features=INDICES, quick=True)
    assert crashes(report) == {}
    assert report.counts[Verdict.MATCHES] > 0


@pytest.mark.parametrize("path", ["no_such_module:loss", "subjects:no_such_function"])
def test_an_implementation_that_cannot_be_loaded_is_an_import_error(path: str) -> None:
    with pytest.raises(ImportError, match=r"no_such"):
        run(path, "numpy", features=INDICES)


def test_a_function_that_only_this_process_has_runs_here() -> None:
    def local(logits: object, target: object) -> object:
        return logits

    assert importable(local) is None
    assert not run(local, "numpy", features=INDICES, quick=True).ok
    with pytest.raises(ValueError, match="cannot import"):
        run(local, "numpy", features=INDICES, isolate=True)


def test_a_fused_linear_form_runs_the_cases_of_logits_through_an_identity() -> None:
    report = run("subjects:linear", "numpy", features=["class indices"], quick=True, linear=True)
    by_feature = {name: {r.verdict for r in results} for name, results in report.by_feature().items()}
    assert Verdict.MATCHES in by_feature["class indices"]
    assert Verdict.REFUSES in by_feature["class indices"]
    assert report.ok, crashes(report)
