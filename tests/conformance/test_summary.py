"""What a run shows: lines to paste, a table, a summary, an exit code."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from unixent_conformance import case, check, run, subject
from unixent_conformance.api import Interrupted
from unixent_conformance.cases import catalogue
from unixent_conformance.cli import runs
from unixent_conformance.harness import Mode
from unixent_conformance.model import Tier
from unixent_conformance.report import terminal
from unixent_conformance.results import Report, Result, Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.selection import select
from unixent_mutants import mutants
from unixent_mutants.plain import plain

PLAIN = "unixent_mutants.plain:plain"
MUTANTS = ("MaskAsBool", "WritesToLogits", "SequentialSumOfClasses", "OptionsUnchecked", "PythonFloat")


@pytest.mark.parametrize("name", MUTANTS)
def test_snippets_reproduce_when_pasted(name: str) -> None:
    broken = subject(f"unixent_mutants:{name}")
    results = (run_case(c, broken) for c in catalogue(features=mutants()[name].features))
    result = next(r for r in results if not r.verdict.ok)
    with pytest.raises(AssertionError, match=result.verdict.value):
        exec(result.repro, {})


def test_check_passes_what_holds() -> None:
    check(case("mask/bool/float32-sum/value"), subject(PLAIN))
    with pytest.raises(LookupError, match="no mode 'jit'"):
        subject(PLAIN, mode="jit")


@pytest.mark.parametrize(
    ("tested", "code", "text"),
    [
        (PLAIN, 0, "class weights"),
        ("unixent_mutants:MaskAsBool", 1, "uc.check"),
        ("unixent_mutants:MaskAsBool", 1, "\nnot ok: "),  # the last line, where lines to paste have scrolled away
        ("nope", 2, "nope"),
        ("no_such_module:loss", 2, "no_such_module"),
        (f"{PLAIN}er", 2, "plainer"),
    ],
)
def test_the_exit_code_says_what_became_of_the_run(tested: str, code: int, text: str) -> None:
    console = Console(file=io.StringIO(), width=120)
    features = ["mask", "class weights"]
    assert runs.run([tested], quick=True, features=features, console=console) == code
    assert isinstance(console.file, io.StringIO)
    assert text in console.file.getvalue()
    assert "Traceback" not in console.file.getvalue()


@pytest.mark.parametrize(("width", "first"), [(40, "✓"), (80, "feature"), (120, "feature")])
def test_in_a_narrow_terminal_the_verdicts_come_first(width: int, first: str) -> None:
    """Every count is whole at every width; where the share of the bound is shown, it is explained."""
    verdicts = [v for v in Verdict for _ in range(1234 if v is Verdict.MATCHES else 107)]
    results = [Result(f"a/{i}", "out-of-range targets", "eager", v, units=0.5) for i, v in enumerate(verdicts)]
    console = Console(width=width, file=io.StringIO())
    console.print(terminal.table(Report("my.kernels:loss", "torch", "torch 2.13.0", tuple(results))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    heading = next(line for line in text.splitlines() if "feature" in line)
    assert heading.split()[0] == first
    assert re.search(r"1234 +107 +107 +107 +107", text)
    assert "…" not in text
    assert ("1 is normal in half precision" in " ".join(text.split())) == (width > 40)
    assert ("✗ silently wrong" in " ".join(text.split())) == (width == 40)


def shown(tested: str, **options: Any) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = runs.run([tested], quick=True, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_a_run_in_which_nothing_matches_is_not_ok() -> None:
    code, text = shown(f"{__name__}:refuses_everything", features=["mask", "z-loss"], isolate=False)
    assert code == 2
    assert "nothing matches: no case shows that it is right; most often: has no option mask" in text
    assert not run(refuses_everything, features=["mask"], quick=True, isolate=False).ok


def refuses_everything(logits: Any, target: Any) -> Any:
    raise NotImplementedError


def test_the_summary_says_what_was_judged_where_and_what_was_left_out() -> None:
    _, text = shown(f"{__name__}:of_indices", features=["class indices", "mask"], isolate=False)
    cases = catalogue(Tier.QUICK, features=["class indices", "mask"])
    judged = [c for c in cases if c.feature == "class indices" and c.quantity == "loss"]
    assert f"{len(judged)} of " in text
    assert f"judged by mode: eager {len(judged)}" in text
    lacks = {"position_stats", "target:sparse"}
    of_a_loss = [c for c in catalogue() if c.quantity != "terms" and not lacks & c.needs]
    answerable = [[c for c in cases if c in of_a_loss], of_a_loss]
    asked, everything = (len(list(select(some, [Mode("eager")]))) for some in answerable)
    assert f"left out: {everything - asked} cases, since quick cases and some features were asked for" in text


def of_indices(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    return plain.loss(logits, target, reduction=reduction)


def test_an_error_that_comes_everywhere_is_shown_once() -> None:
    code, text = shown(f"{__name__}:no_device", features=["class indices", "z-loss", "mask"], isolate=False)
    assert code == 1
    assert text.count("uc.check(case, subject)") == 1
    assert "in 3 features" in text


def no_device(logits: Any, target: Any, **options: Any) -> Any:
    raise RuntimeError("no device is found")


@pytest.mark.parametrize(("judged", "said"), [(2, ""), (1, "1 case, since the run was stopped by Ctrl-C")])
def test_a_stop_says_how_many_cases_it_left_out_if_any(judged: int, said: str) -> None:
    chosen: dict[str, Any] = {"features": ["batch invariance"], "quick": True, "isolate": False}
    cases = len(run(of_indices, **chosen).cases)

    def stop(done: int, total: int) -> None:
        if done == cases - 2 + judged:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        run(of_indices, **chosen, progress=stop)
    report = stopped.value.report
    assert report.stopped == "Ctrl-C"
    assert [line for line in report.left_out if "since the run" in line] == ([said] if said else [])


@pytest.mark.parametrize("width", [68, 80, 107, 108, 160])
def test_a_table_of_every_verdict_keeps_its_last_column(width: int) -> None:
    name = "fused linear frozen arguments"
    results = [Result(f"a/{v.value}/{i}", name, "eager", v, "", 0.25) for v in Verdict for i in range(1234)]
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal.table(Report("mine:loss", "numpy", "", tuple(results))))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    row = next(line.split() for line in lines if "1234" in line)
    assert row[-6:] == ["1234"] * 5 + ["0.25"]
    assert max(map(len, lines)) <= width
