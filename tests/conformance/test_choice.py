"""Which cases a run asks: modes, dtypes, what is left out, known failures, a budget of time, a device."""

from __future__ import annotations

import sys
from copy import copy
from functools import partial
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from unixent_conformance import harnesses, run
from unixent_conformance.cases import catalogue
from unixent_conformance.harness import Derivative, Harness, Mode
from unixent_conformance.harnesses.numpy import NumPyHarness
from unixent_conformance.model import Array, Tier
from unixent_conformance.results import Verdict
from unixent_conformance.selection import Choice, by_weight, select
from unixent_mutants.plain import plain

MODES = (Mode("eager"), Mode("grad", autodiff=True, tier=Tier.CORE), Mode("jit", traced=True, tier=Tier.CORE))
BROKEN = "unixent_mutants:MaskAsBool"


def test_modes_dtypes_and_skips_leave_the_rest_out() -> None:
    everything = catalogue()
    assert {mode.name for _, mode in Choice(modes=("grad", "eager")).of(everything, MODES)} == {"grad", "eager"}
    half = Choice(dtypes=("float16",)).of(everything, MODES)
    assert half
    assert all("dtype:float16" in case.needs for case, _ in half)
    left = Choice(skip=("mask", "large-inputs/*")).of(everything, MODES)
    assert {case.feature for case, _ in left} == {c.feature for c in everything} - {"mask", "large inputs"}


PARTS: list[dict[str, Any]] = [
    {"features": ("mask", "class indices")},
    {"modes": ("eager", "jit")},
    {"dtypes": ("float16", "float32")},
    {"skip": ("mask", "class-indices/plain/*")},
]


@pytest.mark.parametrize(("first", "second"), list(combinations(PARTS, 2)), ids=lambda part: "".join(part))
def test_two_options_ask_what_both_of_them_ask(first: dict[str, Any], second: dict[str, Any]) -> None:
    one, other, both = (set(Choice(**given).of(catalogue(), MODES)) for given in (first, second, first | second))
    assert both == one & other


@pytest.mark.parametrize("part", PARTS, ids="".join)
def test_a_quick_run_asks_no_case_that_an_option_leaves_out(part: dict[str, Any]) -> None:
    quick, both = (set(Choice(quick=True, **given).of(catalogue(), MODES)) for given in ({}, part))
    alone = set(Choice(**part).of(catalogue(), MODES))
    assert quick & alone <= both <= alone
    assert all(case.within(Tier.QUICK) for case, _ in both)


def test_a_quick_run_of_a_mode_asks_no_less_of_it_than_a_quick_run_of_all() -> None:
    whole = Choice(quick=True).of(catalogue(), MODES)
    for mode in MODES:
        assert {pair for pair in whole if pair[1] is mode} <= set(
            Choice(True, modes=(mode.name,)).of(catalogue(), MODES)
        )


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(modes=("compile",)), "modes: no such mode: compile; expected eager, grad, jit"),
        (Choice(dtypes=("float8",)), "dtypes: no such dtype: float8; expected float16"),
        (Choice(skip=("no/such/*",)), "skip: no case or feature matches 'no/such/*'"),
        (Choice(features=("nope",)), "features: no such feature: nope"),
    ],
)
def test_what_is_unknown_is_an_error(choice: Choice, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("*", r"\*").replace("/", "/")):
        choice.of(catalogue(), MODES)


def test_what_tells_most_comes_first() -> None:
    pairs = list(select(catalogue(), MODES))
    ordered = by_weight(pairs)
    assert sorted(map(id, (case for case, _ in ordered))) == sorted(map(id, (case for case, _ in pairs)))
    first = ordered[: len(ordered) // 8]
    assert {case.feature for case, _ in first} == {case.feature for case, _ in pairs}
    assert {mode for _, mode in first} == set(MODES)


@pytest.mark.parametrize("isolate", [False, True])
def test_a_budget_ends_the_run_and_the_report_says_so(isolate: bool) -> None:
    report = run("unixent_mutants.plain:plain", features=["mask", "z-loss"], budget=0.0, isolate=isolate)
    assert 0 < len(report.cases) < 5
    assert report.left_out[0].endswith("cases, since 0 s were over")
    whole = run(plain, features=["mask"], quick=True, budget=60.0)
    assert not any("were over" in line for line in whole.left_out)


def listed(folder: Path, *lines: str) -> Path:
    (folder / "xfails.txt").write_text("# known\n\n" + "\n".join(lines) + "\n", "utf-8")
    return folder / "xfails.txt"


def test_known_failures_are_strict_and_have_reasons(tmp_path: Path) -> None:
    options: dict[str, Any] = {"features": ["mask"], "quick": True, "isolate": False}
    wrong = [r for r in run(BROKEN, **options).cases if r.verdict is Verdict.WRONG]
    lines = [f"{BROKEN}-{r.mode}-{r.id} # counts become 1" for r in wrong]
    report = run(BROKEN, expected_failures=listed(tmp_path, *lines, "torch-eager-mask/x # another's"), **options)
    assert report.ok, report.failures
    assert {r.detail for r in report.cases if r.verdict is Verdict.REFUSES} == {"expected to fail: counts become 1"}
    passing = f"{BROKEN}-eager-mask/bool/float32-terms # no, it passes"
    (unexpected,) = run(BROKEN, expected_failures=listed(tmp_path, *lines, passing), **options).failures
    assert unexpected.detail == "expected to fail (no, it passes), and does not: take it off the list"
    for line, said in (
        (f"{BROKEN}-eager-mask/bool # x", "no case is called"),
        (f"{BROKEN}-eager-a", "expected a reason"),
    ):
        with pytest.raises((LookupError, ValueError), match=said):
            run(BROKEN, expected_failures=listed(tmp_path, line), **options)


class OnDevice:
    """An array of a device that is none: its values are read by its harness alone."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.dtype, self.shape, self.ndim = values.dtype, values.shape, values.ndim


class DeviceHarness(NumPyHarness):
    name = "device"
    place = "host"

    def __init__(self) -> None:
        self.downloads = 0
        self.dtypes: set[Any] = set()

    def on(self, device: str) -> Harness:
        if device != "fake:0":
            return super().on(device)
        moved = copy(self)
        moved.place, moved.dtypes = device, set()
        USED.append(moved)
        return moved

    def from_numpy(self, array: Array) -> Any:
        self.dtypes.add(array.dtype)
        return OnDevice(array)

    def to_numpy(self, array: Any) -> Array:
        self.downloads += 1
        return np.asarray(array.values)

    def owns(self, value: Any) -> bool:
        return isinstance(value, OnDevice)

    def gradient(self, of: Derivative, mode: Mode) -> Any:
        raise NotImplementedError


USED: list[DeviceHarness] = []
harness = DeviceHarness()


def on_device(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    return OnDevice(np.asarray(plain.loss(logits.values, target.values, reduction=reduction)))


def test_arrays_are_put_on_the_device_once_each_and_read_once() -> None:
    USED.clear()
    report = run(
        on_device, f"{__name__}:harness", features=["class indices"], quick=True, device="fake:0", isolate=False
    )
    assert report.ok, report.failures
    (used,) = USED
    judged = [r for r in report.cases if r.verdict is Verdict.MATCHES]
    calls = [r for r in report.cases if not r.id.endswith(("gradient", "terms"))]
    # And one more of each dtype, which shows that it comes back as itself.
    assert len(judged) == len(calls) == used.downloads - len(used.dtypes)
    assert used.place == "fake:0"
    with pytest.raises(ValueError, match="device: device has its arrays where it puts them"):
        run(on_device, f"{__name__}:harness", quick=True, device="cuda:0", isolate=False)
    with pytest.raises(ValueError, match="device: numpy has its arrays"):
        run("numpy", quick=True, device="cuda:0")


def test_a_callable_is_given_the_arrays_of_the_framework_that_its_module_has_names_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("somebodys_losses")
    exec("def loss(logits, target): ...", vars(module))
    monkeypatch.setitem(sys.modules, "somebodys_losses", module)
    monkeypatch.setattr(harnesses, "load", lambda name: name)
    for name in harnesses.FRAMEWORKS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert harnesses.of_callable(module.loss) == "numpy"
    # It may leave the arithmetic to modules of its own, which have loaded a framework.
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert harnesses.of_callable(module.loss) == "torch"
    monkeypatch.setitem(sys.modules, "jax", ModuleType("jax"))
    with pytest.raises(LookupError, match="somebodys_losses works with one of torch and jax"):
        harnesses.of_callable(module.loss)
    vars(module)["np"] = np
    assert harnesses.of_callable(module.loss) == "numpy"
    vars(module)["jnp"] = ModuleType("jax.numpy")
    assert harnesses.of_callable(module.loss) == harnesses.of_callable(partial(module.loss, None)) == "jax"
    vars(module)["Tensor"] = type("Tensor", (), {"__module__": "torch"})
    with pytest.raises(LookupError, match="somebodys_losses has names of jax and torch"):
        harnesses.of_callable(module.loss)
