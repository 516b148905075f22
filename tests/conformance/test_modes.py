"""What a case means under a trace, under vmap and where there is differentiation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from unixent_conformance import case
from unixent_conformance.cases import catalogue
from unixent_conformance.harness import Mode
from unixent_conformance.harnesses.numpy import NumPyHarness
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array, Tier
from unixent_conformance.selection import applies
from unixent_mutants.judging import judge, raising
from unixent_mutants.plain import plain

DTYPES = ("float16", "bfloat16", "float32", "float64")


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


def test_a_dtype_that_a_framework_narrows_in_silence_is_refused() -> None:
    @dataclass  # which has no hash
    class Narrow(NumPyHarness):
        name = "narrow"

        def from_numpy(self, array: Array) -> Array:
            return array.astype(np.float32) if array.dtype == np.float64 else array

    verdicts = {d: judge(plain, f"class-indices/plain/{d}-mean/value", "eager", Narrow()) for d in DTYPES}
    assert {d for d, result in verdicts.items() if result.verdict.value != "matches"} == {"float64"}
    assert verdicts["float64"].detail == "narrow makes float32 of float64"
    assert verdicts["float64"].verdict.value == "refuses"


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
