"""Verdicts, modes, repro snippets and exit codes."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import unixent
from unixent_conformance import case, check, run, subject
from unixent_conformance.cases import catalogue
from unixent_conformance.cli import runs
from unixent_conformance.harness import Harness, Mode
from unixent_conformance.harnesses import load
from unixent_conformance.harnesses.numpy import NumPyHarness
from unixent_conformance.implementation import Implementation, wrap
from unixent_conformance.model import Tier
from unixent_conformance.report import terminal
from unixent_conformance.results import Report, Result, Verdict
from unixent_conformance.runner import run_case
from unixent_conformance.selection import applies, select
from unixent_conformance.under_test import Subject
from unixent_mutants import mutants
from unixent_mutants.plain import plain

PLAIN = "unixent_mutants.plain:plain"


def judge(implementation: Implementation, id: str, mode: str = "eager", harness: Harness | None = None) -> Result:
    harness = harness or load("numpy")
    modes = {m.name: m for m in harness.modes}
    return run_case(case(id), Subject(harness, implementation, modes[mode]))


def raising(error: type[Exception], text: str = "no") -> Any:
    def loss(*args: Any, **options: Any) -> Any:
        raise error(text)

    return loss


def test_undeclared_refusal_is_a_crash_and_a_declared_one_is_not() -> None:
    refusing = replace(plain, loss=raising(TypeError))
    id = "class-indices/plain/float16-mean/value"
    assert judge(refusing, id).verdict.value == "crashed"
    declared = replace(refusing, capabilities=frozenset({"dtype:float32", "target:index"}))
    assert judge(declared, id).verdict.value == "refuses"
    assert judge(declared, id.replace("16", "32")).verdict.value == "crashed"


def test_unixents_own_backends_refuse_with_their_own_errors() -> None:
    id = "class-indices/plain/float16-mean/value"
    own = Implementation("own", raising(RuntimeError), capabilities=frozenset({"target:index"}), own_errors=True)
    assert judge(own, id).verdict.value == "crashed"
    assert judge(replace(own, loss=raising(unixent.BackendError)), id).verdict.value == "refuses"


def test_what_is_declared_away_is_not_judged_but_of_unixents_own_backends() -> None:
    def zero(logits: Any, target: Any, **options: Any) -> Any:
        return np.zeros((), logits.dtype)

    id, own = "class-indices/plain/float16-mean/value", Implementation("zero", zero, own_errors=True)
    stranger = replace(own, own_errors=False)
    for declared, verdict in (
        (frozenset({"dtype:float16", "target:index"}), "silently wrong"),
        (None, "silently wrong"),
    ):
        assert judge(replace(stranger, capabilities=declared), id).verdict.value == verdict
    for declared, lacking in (
        (frozenset({"dtype:float16"}), "target:index"),
        (frozenset({"target:index"}), "dtype:float16"),
    ):
        result = judge(replace(stranger, capabilities=declared), id)
        assert (result.verdict.value, result.detail) == ("refuses", f"declared without {lacking}")
    result = judge(replace(own, capabilities=frozenset()), id)
    assert result.verdict.value == "silently wrong"
    assert result.units > 100


@pytest.mark.parametrize(
    ("error", "text", "verdict"),
    [
        (unixent.ShapeError, "target: no", "matches"),
        (unixent.ShapeError, "no", "crashed"),
        (unixent.OptionError, "target: no", "crashed"),
        (ValueError, "target: no", "crashed"),
    ],
)
def test_errors_are_judged_by_class_and_by_the_argument_they_name(
    error: type[Exception], text: str, verdict: str
) -> None:
    own = Implementation("own", raising(error, text), own_errors=True)
    assert judge(own, "bad-input/target-of-another-shape/value").verdict.value == verdict


def test_any_error_does_for_a_stranger() -> None:
    result = judge(Implementation("stranger", raising(KeyError)), "bad-input/target-of-another-shape/value")
    assert result.verdict.value == "matches"


def test_options_outside_the_signature_are_refused_without_a_call() -> None:
    def loss(logits: Any, target: Any, reduction: str = "mean") -> Any:
        return plain.loss(logits, target, reduction=reduction)

    result = wrap(loss)
    assert judge(result, "mask/bool/float32-sum/value").detail == "has no option mask"
    assert judge(result, "class-indices/plain/float32-sum/value").verdict.value == "matches"
    assert judge(result, "class-indices/plain/float32-sum/gradient").detail == "numpy has no automatic differentiation"


class Unavailable(Exception):
    """An error of a compiler, say, which stands in the way of the one that was raised."""


def test_a_refusal_that_something_else_wraps_is_one() -> None:
    def loss(*args: Any, **options: Any) -> Any:
        try:
            raise NotImplementedError("no")
        except NotImplementedError as error:
            raise Unavailable("a graph") from error

    assert judge(wrap(loss), "class-indices/plain/float32-sum/value").verdict.value == "refuses"
    assert judge(wrap(raising(Unavailable)), "class-indices/plain/float32-sum/value").verdict.value == "crashed"


@pytest.mark.parametrize("id", ["class-indices/plain/float64-sum/value", "class-indices/plain/float16-none/value"])
def test_a_scalar_of_numpy_is_a_result_and_its_dtype_counts(id: str) -> None:
    def scalar(logits: Any, target: Any, **options: Any) -> Any:
        return np.asarray(plain.loss(logits, target, **options))[()]

    assert judge(wrap(scalar), id).verdict.value == "matches"
    wide = judge(
        wrap(lambda *given, **options: np.float32(scalar(*given, **options))), "class-indices/plain/float64-sum/value"
    )
    assert wide.detail == "loss: dtype float32, expected float64"


@pytest.mark.parametrize(
    ("id", "declared"),
    [
        ("normalizer/array/float64-mean/value", "dtype:mixed"),
        ("result-dtype/float32-to-float64/sum/gradient", "dtype:mixed"),
        ("fused-linear/wider-classifier/mean/value", "dtype:mixed"),
        ("target-dtypes/uint64/plain/mean/value", "target:uint64"),
        ("target-dtypes/int32/plain/mean/value", "target:int32"),
    ],
)
def test_a_loud_error_about_dtypes_that_nobody_promised_is_a_refusal(id: str, declared: str) -> None:
    wrong = raising(RuntimeError, "expected one dtype")
    loss = Implementation("loud", wrong, value_and_grad=wrong, linear=wrong, linear_value_and_grad=wrong)
    assert judge(loss, id).verdict.value == "refuses"
    needs = case(id).needs
    assert declared in needs
    assert judge(replace(loss, capabilities=needs), id).verdict.value == "crashed"
    assert judge(replace(loss, capabilities=needs - {declared}), id).verdict.value == "refuses"


def test_every_refusal_of_a_small_implementation_is_named() -> None:
    def loss(logits: Any, target: Any) -> Any:
        return plain.loss(logits, target)

    report = run(loss, "numpy", quick=True)
    assert report.ok
    assert report.counts[report.cases[0].verdict] > 0
    assert all(r.detail for r in report.cases if r.verdict.value == "refuses")


class TracingHarness(NumPyHarness):
    modes = (Mode("eager"), Mode("traced", traced=True, tier=Tier.QUICK))


def traced(**options: Any) -> dict[str, Any]:
    return {**options, "validate": "off", "on_empty": options.get("on_empty", "zero").replace("raise", "nan")}


# What a framework does under a trace: no value is read.
BLIND = Implementation(
    "blind",
    lambda x, y, **options: plain.loss(x, y, **traced(**options)),
    None,
    lambda x, y, grad_output=None, wrt="logits", **options: plain.value_and_grad(
        x, y, grad_output=grad_output, wrt=wrt, **traced(**options)
    ),
)


@pytest.mark.parametrize("id", ["out-of-range-targets/C/value", "empty-mean/all-masked/raise/gradient"])
def test_errors_about_values_become_nan_under_a_trace(id: str) -> None:
    harness = TracingHarness()
    assert judge(BLIND, id, "eager", harness).verdict.value == "silently wrong"
    assert judge(BLIND, id, "traced", harness).verdict.value == "matches"
    assert judge(replace(plain, own_errors=True), id, "traced", harness).verdict.value == "crashed"


def test_any_error_does_for_a_stranger_under_a_trace_too() -> None:
    loud = Implementation("loud", raising(IndexError, "target 5 is out of bounds"))
    assert judge(loud, "out-of-range-targets/C/value", "traced", TracingHarness()).verdict.value == "matches"


class MappingHarness(NumPyHarness):
    """vmap as a loop."""

    modes = (Mode("vmap", traced=True, autodiff=True, tier=Tier.FEW, transform="vmap"),)

    def call(self, function: Any, arrays: Any, mode: Mode) -> Any:
        return np.stack([function(*(array[i] for array in arrays)) for i in range(len(arrays[0]))])


def test_under_vmap_the_case_stands_between_others() -> None:
    id, harness = "class-indices/plain/float32-mean/value", MappingHarness()
    assert judge(plain, id, "vmap", harness).verdict.value == "matches"
    seen = []
    judge(Implementation("spy", lambda x, y: seen.append((x, y)) or plain.loss(x, y)), id, "vmap", harness)
    (before, itself, after), call = seen, case(id).build()
    assert all((own == due).all() for own, due in zip(itself, (call.logits, call.target), strict=True))
    assert not any((own == due).any() for own, due in ((before[0], itself[0]), (after[0], itself[0])))


def test_what_does_not_map_is_wrong() -> None:
    class Sharing(MappingHarness):
        def call(self, function: Any, arrays: Any, mode: Mode) -> Any:
            return super().call(function, arrays, mode).mean(keepdims=True)

    result = judge(plain, "class-indices/plain/float32-mean/value", "vmap", Sharing())
    assert result.verdict.value == "silently wrong"
    assert "shape (1,)" in result.detail


def test_the_frameworks_own_refusal_of_a_transform_stands_unless_the_transform_is_declared() -> None:
    id, harness = "class-indices/plain/float32-mean/value", MappingHarness()
    refusing = replace(plain, loss=raising(NotImplementedError, "no rule"))
    assert judge(refusing, id, "vmap", harness).verdict.value == "refuses"
    declared = frozenset({"dtype:float32", "target:index", "transform:vmap"})
    assert judge(replace(refusing, capabilities=declared), id, "vmap", harness).verdict.value == "crashed"
    assert judge(refusing, id, "eager").verdict.value == "crashed"


def test_second_derivatives_are_asked_where_there_is_differentiation() -> None:
    twice = case("second-derivatives/softcap")
    assert not applies(twice, Mode("eager"))
    assert not applies(twice, Mode("jit", traced=True, autodiff=True))
    assert applies(twice, Mode("autograd", autodiff=True))
    harness = NumPyHarness()
    harness.modes = (Mode("autograd", autodiff=True),)
    assert judge(plain, twice.id, "autograd", harness).detail == "numpy has no second derivatives"


def test_modes_choose_their_cases() -> None:
    shape = case("bad-input/target-of-another-shape/value")
    value, gradient = (case(f"mask/bool/float32-sum/{word}") for word in ("value", "gradient"))
    traced, autodiff = Mode("traced", traced=True), Mode("autodiff", autodiff=True)
    assert not applies(shape, traced)
    assert applies(value, traced)
    assert not applies(value, autodiff)
    assert applies(gradient, autodiff)
    passes = case("two-backward-passes/none/float32")
    modes = (autodiff, traced, Mode("eager"), Mode("forward", autodiff=True, transform="jvp"))
    assert [applies(passes, mode) for mode in modes] == [True, False, False, False]
    quick, costly = Mode("quick", tier=Tier.QUICK), Mode("costly", tier=Tier.CORE)
    assert not applies(case("mask/bool/float16-sum/value"), quick)
    assert applies(value, quick)
    known = [c for c in catalogue() if c.quantity not in ("second derivatives", "gradients of two passes")]
    assert [c.within(Tier.CORE) for c in known] == [applies(c, costly) for c in known]


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
    assert "nothing matches" in text
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
