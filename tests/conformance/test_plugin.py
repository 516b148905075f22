"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from unixent_conformance import parametrize_with_cases

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


def test_modules_are_imported_from_the_working_directory_as_on_the_command_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mine="from unixent_mutants.plain import plain as loss")
    command = (sys.executable, "-P") if sys.version_info >= (3, 11) else (sys.executable,)
    script = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    result = pytester.run(*command, "-c", script, *PLUGIN, "--unixent-implementation=mine:loss", *FEW)
    assert result.parseoutcomes()["passed"] > 3


IN_A_FILE = """
from unixent_conformance import parametrize_with_cases

failures = {failures}

@parametrize_with_cases("{implementation}", "numpy", quick=True, features=["mask"], expected_failures=failures)
def test_conformance(check):
    check()
"""


def test_the_suite_lives_in_a_test_file_of_ones_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(IN_A_FILE.format(implementation=BROKEN, failures={}))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rf")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 5  # what a boolean mask decides
    assert outcomes["failed"] > 3
    result.stdout.fnmatch_lines(["*silently wrong: *", "*import unixent_conformance as uc", "*uc.check(case, subject)"])
    result.stdout.fnmatch_lines(["FAILED *test_conformance[[]eager-mask/integer/float32-sum/value]*"])


def test_its_expected_failures_are_strict_and_have_reasons(pytester: pytest.Pytester) -> None:
    failures = {
        "eager-mask/integer/float32-sum/value": "counts become 1",
        "eager-mask/bool/float32-terms": "no, it passes",
    }
    pytester.makepyfile(IN_A_FILE.format(implementation=BROKEN, failures=failures))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rx")
    assert result.parseoutcomes()["xfailed"] == 1
    result.stdout.fnmatch_lines(["*XPASS(strict)*no, it passes*"])


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({"eager-no/such/case": "why"}, "*no case of this run has the id eager-no/such/case*"),
        ({"eager-mask/bool/float32-sum/value": " "}, "*expected a reason for eager-mask/bool/float32-sum/value*"),
    ],
)
def test_its_bad_lists_of_failures_are_errors(pytester: pytest.Pytester, failures: dict[str, str], said: str) -> None:
    pytester.makepyfile(IN_A_FILE.format(implementation=BROKEN, failures=failures))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([said])


def test_a_refusal_is_a_skip_and_a_convention_passes_in_a_file_of_ones_own(pytester: pytest.Pytester) -> None:
    """As in `run`: a dialect is no failure unless strict."""
    pytester.makepyfile(
        mine="""
        import numpy as np

        def over_positions(logits, target, *, weight=None, reduction="mean"):
            if target.dtype.kind != "i":
                raise NotImplementedError("class indices only")
            x = logits.astype(np.float64)
            others = np.exp(x - np.take_along_axis(x, target[..., None], -1))
            np.put_along_axis(others, target[..., None], 0, -1)
            loss = np.log1p(others.sum(-1)) * (1 if weight is None else weight.astype(np.float64)[target])
            return np.asarray(loss if reduction == "none" else getattr(loss, reduction)()).astype(logits.dtype)
        """,
        test_mine="""
        from unixent_conformance import parametrize_with_cases
        import mine

        @parametrize_with_cases(mine.over_positions, features=["class weights"])
        def test_loose(check):
            check()

        @parametrize_with_cases(mine.over_positions, features=["class weights"], strict=True)
        def test_strict(check):
            check()
        """,
    )
    loose, strict = (
        pytester.runpytest_subprocess("-p", "no:cacheprovider", "-k", name).parseoutcomes()
        for name in ("loose", "strict")
    )
    assert loose["skipped"] == strict["skipped"] > 0
    assert loose["passed"] > strict["passed"] > 0
    assert "failed" not in loose
    assert strict["failed"]


def test_modes_dtypes_and_skips_choose_the_tests(pytester: pytest.Pytester) -> None:
    options = ("--unixent-modes=eager", "--unixent-dtype=float16", "--unixent-skip=mask", "-k", "mask or z-loss")
    result = pytester.runpytest_subprocess(*PLUGIN, PLAIN, *options, "--collect-only", "-q")
    listed = [line for line in result.outlines if "test_conformance[" in line]
    assert listed
    assert all("float16" in line and "-eager-" in line and "-eager-mask/" not in line for line in listed)
    result = pytester.runpytest_subprocess(*PLUGIN, PLAIN, "--unixent-modes=jit")
    result.stdout.fnmatch_lines(["*no such mode: jit*"])


def test_a_device_that_a_harness_has_not_is_an_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*PLUGIN, PLAIN, "--unixent-device=cuda:0")
    assert "numpy has its arrays where it puts them" in result.stdout.str() + result.stderr.str()


def test_a_file_of_ones_own_chooses_modes_dtypes_and_the_device(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        from unixent_conformance import parametrize_with_cases

        @parametrize_with_cases("{BROKEN}", modes=["eager"], dtypes=["float16"], features=["class indices"])
        def test_conformance(check):
            assert check.mode == "eager"
            assert "float16" in check.id

        def test_device():
            with pytest.raises(Exception, match="cuda:0"):
                parametrize_with_cases("{BROKEN}", "numpy", device="cuda:0")
        """
    )
    outcomes = pytester.runpytest_subprocess("-p", "no:cacheprovider").parseoutcomes()
    assert outcomes["passed"] > 1
    assert "failed" not in outcomes


def test_a_budget_that_is_over_skips_the_rest(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*PLUGIN, PLAIN, "--unixent-budget", "0", *FEW, "-rs")
    assert result.parseoutcomes().keys() == {"skipped", "deselected"}
    result.stdout.fnmatch_lines(["*the seconds of --unixent-budget were over"])


def test_parametrize_takes_no_unknown_option_and_no_choice_of_nothing() -> None:
    """pytest would skip a test without cases, and end well."""
    with pytest.raises(TypeError, match="no such option: budget, listed"):
        parametrize_with_cases(BROKEN, "numpy", budget=3, listed=())
    with pytest.raises(ValueError, match="no case is all that was asked for"):
        parametrize_with_cases(BROKEN, "numpy", features=["mask"], skip=["mask"])
    known = {"eager-mask/bool/float32-men/value": "x"}
    with pytest.raises(ValueError, match="did you mean eager-mask/bool/float32-mean/value"):
        parametrize_with_cases(BROKEN, "numpy", features=["mask"], expected_failures=known)
