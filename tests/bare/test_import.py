"""What `import unixent` brings with it: NumPy, in next to no time, and nothing else."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import textwrap
from importlib import metadata

FRAMEWORKS = ("torch", "jax", "jaxlib", "mindspore", "tensorflow")
TOOLS = ("pytest", "hypothesis", "rich", "typer", "mpmath", "scipy", "ml_dtypes", "unixent_conformance")


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


def test_import_takes_less_than_half_of_numpys_own() -> None:
    """Processor time of a fresh interpreter with warm bytecode, relative to NumPy's import in the same process: what
    else the machine does, and how fast it is, must not count."""
    program = """
        import time
        start = time.process_time()
        import numpy
        between = time.process_time()
        import unixent
        print((time.process_time() - between) / (between - start))
    """
    program = textwrap.dedent(program)
    run(program)
    ratio = statistics.median(float(run(program)) for _ in range(7))
    assert ratio <= 0.5, f"import unixent takes {ratio:.2f} of the time of import numpy"


def test_only_numpy_is_required() -> None:
    required = [line for line in metadata.requires("unixent") or [] if "extra ==" not in line]
    assert [line.partition(">")[0] for line in required] == ["numpy"]


def test_command_line_says_what_it_needs() -> None:
    done = subprocess.run([sys.executable, "-m", "unixent", "backends"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("unixent: the command line needs typer: pip install ")
    assert ' "typer>=' in done.stderr
