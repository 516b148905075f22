"""What `import unixent` brings with it: NumPy, in next to no time, and nothing else."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from importlib import metadata

FRAMEWORKS = ("torch", "jax", "jaxlib", "mindspore", "tensorflow")
TOOLS = ("pytest", "hypothesis", "rich", "typer", "mpmath", "scipy", "ml_dtypes", "unixent_conformance")
BUDGET_MS = 50.0


def run(program: str) -> str:
    """Standard output of a fresh interpreter: what the test runner has imported must not count."""
    return subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    ).stdout


def imported_by(program: str) -> set[str]:
    names = json.loads(run(f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))").splitlines()[-1])
    return {name.partition(".")[0] for name in names}


def test_import_brings_no_framework_and_no_tool() -> None:
    assert not imported_by("import unixent") & {*FRAMEWORKS, *TOOLS}


def test_a_numpy_call_brings_no_framework() -> None:
    loaded = imported_by("import unixent; print(unixent.cross_entropy([[0.0, 1.0]], [1]))")
    assert "unixent_numpy" in loaded
    assert not loaded & set(FRAMEWORKS)


def test_listing_backends_brings_no_framework() -> None:
    assert not imported_by("import unixent; print(unixent.backends())") & {*FRAMEWORKS, "unixent_numpy"}


def test_import_stays_within_its_budget() -> None:
    """At most 50 ms over NumPy's own import, with warm bytecode.

    Processor time of a fresh interpreter, since nothing in it waits, and what else the machine does is not to count.
    """
    program = (
        "import time, numpy\nstart = time.process_time()\nimport unixent\nprint(1e3 * (time.process_time() - start))"
    )
    run(program)
    median = statistics.median(float(run(program)) for _ in range(7))
    assert median <= BUDGET_MS, f"import unixent adds {median:.1f} ms to import numpy"


def test_only_numpy_is_required() -> None:
    required = [line for line in metadata.requires("unixent") or [] if "extra ==" not in line]
    assert [line.partition(">")[0] for line in required] == ["numpy"]


def test_command_line_says_what_it_needs() -> None:
    done = subprocess.run([sys.executable, "-m", "unixent", "backends"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == 'unixent: the command line needs typer: pip install "unixent[conformance]"\n'
