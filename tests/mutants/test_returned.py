"""What a loss returns that is no array is named in every mode, in the place of an error of the framework's."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from unixent_conformance.harnesses import load
from unixent_conformance.implementation import Implementation
from unixent_mutants.judging import judge

# A mode in which a value is read first, and one that differentiates.
MODES = {"torch": ("autograd", "vmap"), "jax": ("grad", "forward"), "mindspore": ("grad", "async")}
INSTALLED = [name for name in MODES if find_spec(name)]
if not INSTALLED:
    pytest.skip(f"needs one of {', '.join(MODES)}", allow_module_level=True)

LOGITS = "class-indices/plain/float32-mean/gradient"
LINEAR = "fused-linear/class-indices/plain/float32-none/gradients"
STATISTICS = "statistics/log_prob-plain/float32/gradient"
SECOND = ("second-derivatives/class-indices", "two-backward-passes/mean/float32")


@pytest.mark.parametrize(("framework", "mode"), [(name, mode) for name in INSTALLED for mode in MODES[name]])
@pytest.mark.parametrize(("id", "returned"), [(LOGITS, None), (LINEAR, None), (STATISTICS, None), (LOGITS, (1.5, 2.5))])
def test_what_a_loss_returns_is_named(framework: str, mode: str, id: str, returned: Any) -> None:
    def loss(*arrays: Any, **options: Any) -> Any:
        return returned

    tested = Implementation("given", loss, linear=loss, position_stats=loss)
    result = judge(tested, id, mode, load(framework))
    what = "the result of position_stats is" if id == STATISTICS else "the result is"
    assert result.verdict.value == "silently wrong"
    assert result.detail.startswith(what), result.detail
    assert type(returned).__name__ in result.detail


@pytest.mark.skipif(not find_spec("torch"), reason="needs torch")
@pytest.mark.parametrize("mode", ["eager", "autograd", "compile", "forward", "vmap"])
def test_a_number_is_no_tensor_in_any_mode_of_torch(mode: str) -> None:
    def loss(*arrays: Any, **options: Any) -> Any:
        return 1.5

    result = judge(Implementation("given", loss), LOGITS, mode, load("torch"))
    assert result.detail == "the result is of type float, not an array of torch"


def number(value: Any) -> Any:
    return 1.5


def in_tuple(value: Any) -> Any:
    return (value,)


@pytest.mark.parametrize("framework", INSTALLED)
@pytest.mark.parametrize("id", SECOND)
@pytest.mark.parametrize("change", [number, in_tuple])
def test_what_is_differentiated_twice_is_an_array(framework: str, id: str, change: Any) -> None:
    plain = import_module(f"unixent_mutants.transforms_{framework}").plain

    def loss(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
        return change(plain(logits, target, reduction=reduction))

    backward = MODES[framework][0]
    for mode in (backward, *(["forward"] if framework != "mindspore" and id == SECOND[0] else [])):
        result = judge(Implementation("given", loss), id, mode, load(framework))
        assert result.verdict.value == "silently wrong"
        assert (
            result.detail
            == f"the result is of type {'float' if change is number else 'tuple'}, not an array of {framework}"
        )
