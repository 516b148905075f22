"""Real processes on gloo: the conformance suite, the example, transforms and the compiler, a process that is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from unixent_conformance.model import Tier
from unixent_conformance.report import to_markdown
from unixent_conformance.results import Verdict
from unixent_conformance.split import Request, run_split

pytestmark = pytest.mark.slow
WORKER = Path(__file__).with_name("worker.py")
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "parallel" / "torch_2x2.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]


def start(command):
    # A session of its own, so that whatever it starts can be ended with it.
    return subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} if sys.platform == "linux" else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(command, limit=480):
    process = start(command)
    try:
        output, _ = process.communicate(timeout=limit)
    finally:
        end(process)
    assert process.returncode == 0, output
    return output


def test_quick_cases_of_every_feature_match():
    # One question of each input; NumPy's processes, which start and agree faster, are asked all.
    report = run_split(Request("torch", "torch", 2, 2, tier=Tier.SAMPLED), timeout=540)
    assert report.ok, to_markdown(report)
    assert report.counts[Verdict.MATCHES] > 700


def test_a_process_without_classes_matches():
    features = ("class indices", "class probabilities", "label smoothing", "minus infinity", "fused linear")
    report = run_split(Request("torch", "torch", 1, 3, features=features, tier=Tier.SAMPLED), timeout=300)
    assert report.ok, to_markdown(report)
    assert report.counts[Verdict.MATCHES] > 100


def test_checks_pass_on_two_processes():
    """Transforms, compiled programs, DTensors and accelerators, in one run: to start it takes longer than most do."""
    output = run([*TORCHRUN, "--nproc-per-node=2", WORKER, "checks"])
    assert output.count("every check passed") == 2, output


@pytest.mark.skipif(find_spec("sklearn") is None, reason="the example reads scikit-learn's digits")
@pytest.mark.skipif(not EXAMPLE.exists(), reason="the examples are not beside the tests")
def test_the_example_trains_as_one_process_does():
    output = run([*TORCHRUN, "--nproc-per-node=4", EXAMPLE, "--steps", 20])
    # Counted one by one: two processes may write on one line.
    assert len(set(re.findall(r"process (\d): images", output))) == output.count(", as alone") == 4, output


@pytest.mark.parametrize("how", ["exits", "hangs"])
def test_a_lost_process_is_an_error_on_the_other(tmp_path, how):
    both = [start([sys.executable, WORKER, "lost", rank, tmp_path / "store", how]) for rank in range(2)]
    try:
        output, _ = both[0].communicate(timeout=60)
    finally:
        for process in both:
            end(process)
    assert both[0].returncode == 0, output
    (seconds,) = re.findall(r"raised after (\d+\.\d) s: ", output)
    assert float(seconds) < 20
