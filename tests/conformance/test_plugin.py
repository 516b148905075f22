"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

PLUGIN = ("--pyargs", "unixent_conformance", "-p", "unixent_conformance.plugin", "-p", "no:cacheprovider")
PLAIN = "--unixent-implementation=unixent_mutants.plain:plain"
BROKEN = "unixent_mutants:MaskAsBool"
FEW = ("--unixent-quick", "-k", "mask and float32")


def test_runs_under_pyargs(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*PLUGIN, "--unixent-backend", "numpy", *FEW)
    result.assert_outcomes(passed=result.parseoutcomes()["passed"], deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines(["unixent conformance: numpy: unixent *numpy *modes: eager"])


def test_an_unknown_backend_by_name_is_an_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*PLUGIN, "--unixent-backend", "nope", *FEW)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*nope*"])


def test_expected_failures_are_strict(pytester: pytest.Pytester) -> None:
    known = f"{BROKEN}-eager-mask/integer/float32-sum/value # counts become 1"
    passing = f"{BROKEN}-eager-mask/bool/float32-terms # no, it passes"
    listed = pytester.makefile(".txt", xfails=f"# a comment\n\n{known}\n{passing}\ntorch-eager-some/case # not run")
    option = f"--unixent-implementation={BROKEN}"
    result = pytester.runpytest_subprocess(*PLUGIN, option, "--unixent-xfails", str(listed), *FEW)
    outcomes = result.parseoutcomes()
    assert outcomes["xfailed"] == 1
    result.stdout.fnmatch_lines(["*XPASS(strict)*no, it passes*", "*silently wrong*"])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("a/case/that/is/not # because", "*no case has the id a/case/that/is/not*"),
        ("some/case", "*expected a reason*"),
    ],
)
def test_bad_lists_of_failures_are_errors(pytester: pytest.Pytester, line: str, text: str) -> None:
    listed = pytester.makefile(".txt", xfails=line)
    result = pytester.runpytest_subprocess(*PLUGIN, PLAIN, "--unixent-xfails", str(listed), *FEW)
    assert result.ret not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    result.stdout.fnmatch_lines([text])


def test_failures_print_what_to_paste(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*PLUGIN, f"--unixent-implementation={BROKEN}", *FEW)
    result.stdout.fnmatch_lines(["*silently wrong: *", "*import unixent_conformance as uc", "*uc.check(case, subject)"])


def test_loading_the_plugin_costs_nothing() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import unixent_conformance.plugin; "
        "new = {m for m in set(sys.modules) - before if not m.startswith('unixent_conformance')}; "
        "print(sorted(new)); sys.exit(bool(new))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
