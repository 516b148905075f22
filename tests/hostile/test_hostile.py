"""A thousandth of the hostile calls on each backend, and proof that the command catches what it is for."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from unixent_hostile.drawing import OUTPUTS, TAILS, draw
from unixent_hostile.frameworks import FRAMEWORKS, Framework
from unixent_hostile.sweep import sweep

only_in_numpy = pytest.mark.skipif(
    os.environ.get("TOX_ENV_NAME", "numpy") != "numpy", reason="no framework's: runs once, in the environment `numpy`"
)
BACKENDS = [
    pytest.param("numpy", marks=only_in_numpy),
    *(name for name in ("torch", "jax", "mindspore") if find_spec(name)),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_hostile_calls_give_the_exact_value_or_an_error_that_names_the_argument(backend: str) -> None:
    result = sweep(backend, seed=20261129, first=0, count=500)
    assert result.counts["calls"] == 500
    assert not result.findings, result.text()


def test_a_call_follows_from_its_seed_and_index() -> None:
    traits = FRAMEWORKS["numpy"].traits
    for index in (0, 17, 12345):
        first, again = draw(3, index, traits), draw(3, index, traits)
        assert (first.form, first.wrt, str(first.call.options)) == (again.form, again.wrt, str(again.call.options))
        assert all(np.array(a).tobytes() == np.array(again.arrays[name]).tobytes() for name, a in first.arrays.items())


def test_most_calls_are_right_and_every_form_layout_and_mistake_is_drawn() -> None:
    drawn = [draw(0, index, Framework.traits) for index in range(1500)]
    mistakes = [each.mistake for each in drawn if each.mistake is not None]
    assert len(mistakes) < len(drawn) / 5
    assert len({mistake.argument for mistake in mistakes}) > 15
    assert {each.form for each in drawn} == {
        *("cross_entropy", "value_and_grad", "loss_terms", "module", "terms_module"),
        *("linear_cross_entropy", "linear_value_and_grad"),
        *("position_stats", "position_stats_and_grad", "linear_position_stats", "linear_position_stats_and_grad"),
    }
    assert {each.call.tail for each in drawn} == {"", *TAILS}
    assert {name for each in drawn for name in each.outputs} == set(OUTPUTS)
    arrays = [array for each in drawn for array in each.arrays.values() if array.size > 1]
    assert any(0 in array.strides for array in arrays)
    assert any(min(array.strides) < 0 for array in arrays)
    assert any(not array.flags.aligned for array in arrays)
    assert any(not array.dtype.isnative for array in arrays)
    assert any(not array.flags.writeable for array in arrays)


@only_in_numpy
@pytest.mark.parametrize(
    ("fault", "group"),
    [
        ("wrong", "wrong loss"),
        ("foreign", "foreign exception: KeyError"),
        ("warning", "foreign warning: RuntimeWarning"),
        ("crash", "the process died with SIGABRT"),
    ],
)
def test_a_planted_fault_is_one_finding_and_the_calls_after_it_are_made(
    fault: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    first = next(i for i in range(10**6) if _is_planted(i))
    healthy = sweep("numpy", seed=0, first=first, count=20, functions="planted:right")
    faulty = sweep("numpy", seed=0, first=first, count=20, functions=f"planted:{fault}")
    assert faulty.counts["calls"] == healthy.counts["calls"] == 20
    new = [faulty.groups[name] for name in set(faulty.groups) - set(healthy.groups)]
    assert [each.indices for each in new] == [[first]], faulty.text()
    assert new[0].name.startswith(group)
    assert f"index={first}" in faulty.text()


def _is_planted(index: int) -> bool:
    """Whether the planted functions fail in this call, and the right ones give a value."""
    drawn = draw(0, index, Framework.traits)
    options = drawn.call.options
    asked = drawn.form == "value_and_grad" and options.get("z_loss") == 0.1 and options.get("reduction") == "sum"
    return asked and drawn.mistake is None and drawn.family == "normal" and drawn.call.target.size > 0
