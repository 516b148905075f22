"""The suite over several processes: NumPy over MPI matches, and a loss that forgets the other processes does not."""

from __future__ import annotations

import shutil
import sysconfig

import pytest

from unixent_conformance.model import Tier
from unixent_conformance.report import to_markdown
from unixent_conformance.results import Verdict
from unixent_conformance.split import Request, run_split

pytest.importorskip("mpi4py", reason="mpi4py is not installed (pip install mpi4py mpich)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("mpiexec", path=sysconfig.get_path("scripts")) or shutil.which("mpiexec")),
        reason="no mpiexec on this machine (pip install mpich)",
    ),
]

FORGETS = """
import dataclasses
import numpy as np
import unixent

def local_mean(logits, target, *, parallel=None, **options):
    alone = dataclasses.replace(parallel, data_parallel=1, token_group=None)
    return unixent.cross_entropy(logits, target, parallel=alone, **options)

def local_classes(logits, target, *, parallel=None, **options):
    alone = dataclasses.replace(parallel, model_parallel=1, model_group=None)
    return unixent.cross_entropy(logits, target % max(1, logits.shape[-1]), parallel=alone, **options)

def raises_alone(logits, target, *, parallel=None, **options):
    if parallel.model_group.Get_rank():
        raise ValueError("this process alone")
    return np.zeros((), logits.dtype)
"""


def test_the_quick_catalogue_matches():
    report = run_split(Request("numpy", "numpy", 2, 2, tier=Tier.QUICK), timeout=500)
    assert report.ok, to_markdown(report)
    assert report.counts[Verdict.MATCHES] > 700
    assert report.implementation == "numpy, 2x2"


def test_a_process_without_classes_matches():
    features = ("class indices", "class probabilities", "label smoothing", "minus infinity", "fused linear")
    features += ("statistics", "fused linear statistics")
    report = run_split(Request("numpy", "numpy", 1, 3, features=features, tier=Tier.QUICK), timeout=300)
    assert report.ok, to_markdown(report)
    assert report.counts[Verdict.MATCHES] > 300


@pytest.mark.parametrize(
    ("function", "data", "model", "detail"),
    [
        ("local_mean", 2, 1, "on process 1 of a group"),
        ("local_classes", 1, 2, "on process 1 of a group"),
        ("raises_alone", 1, 2, "1 processes answered while another raised ValueError('this process alone')"),
    ],
)
def test_a_loss_that_forgets_the_others_is_caught(tmp_path, monkeypatch, function, data, model, detail):
    (tmp_path / "forgets.py").write_text(FORGETS)
    monkeypatch.syspath_prepend(tmp_path)
    request = Request(f"forgets:{function}", "numpy", data, model, features=("class indices",), tier=Tier.QUICK)
    report = run_split(request, timeout=120)
    assert not report.ok
    wrong = [result for result in report.cases if result.verdict is Verdict.WRONG]
    assert any(detail in result.detail for result in wrong), to_markdown(report)
    assert wrong[0].repro.startswith(f"unixent conformance split {data}x{model} ")


def test_processes_that_end_without_a_report_say_why():
    with pytest.raises(RuntimeError, match="No module named 'nowhere'"):
        run_split(Request("nowhere:loss", "numpy", 1, 2, tier=Tier.QUICK), timeout=120)
