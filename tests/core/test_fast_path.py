"""A backend with `capabilities.fast_path` gets small calls before they are validated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import unixent
from unixent import registry
from unixent.options import LossOptions


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, LossOptions]]:
    """The calls that reach the fast path of a backend, which returns 7 for the target [0, 0] and None otherwise."""
    calls: list[tuple[Any, Any, LossOptions]] = []
    base: Any = type(unixent.get_backend("numpy"))

    class WithFastPath(base):
        name = "fast"
        capabilities = replace(base.capabilities, fast_path=True)

        def try_fast_cross_entropy(self, logits: Any, target: Any, options: LossOptions) -> Any:
            calls.append((logits, target, options))
            return 7.0 if list(target) == [0, 0] else None

    monkeypatch.setitem(registry._BY_NAME, "fast", WithFastPath())
    return calls


LOGITS = np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]])


def test_only_calls_of_logits_and_target_alone_reach_the_fast_path(offers: list[Any]) -> None:
    assert unixent.cross_entropy(LOGITS, [0, 0], reduction="sum", backend="fast") == 7
    assert offers == [(LOGITS, [0, 0], LossOptions(reduction="sum"))]
    for name in ("weight", "mask", "normalizer", "parallel"):
        value = {"weight": np.ones(3), "mask": np.ones(2), "normalizer": 2.0, "parallel": unixent.ParallelConfig()}
        assert unixent.cross_entropy(LOGITS, [0, 0], **{name: value[name]}, backend="fast") != 7
    assert len(offers) == 1


def test_options_are_validated_before_the_fast_path_and_arrays_after_it(offers: list[Any]) -> None:
    with pytest.raises(unixent.OptionError, match="label_smoothing"):
        unixent.cross_entropy(LOGITS, [0, 0], label_smoothing=2.0, backend="fast")
    assert not offers
    assert unixent.cross_entropy(LOGITS, [0, 1], backend="fast") == unixent.cross_entropy(LOGITS, [0, 1])
    with pytest.raises(unixent.TargetRangeError, match=r"got 3 at position \(1,\)"):
        unixent.cross_entropy(LOGITS, [0, 3], backend="fast")
    with pytest.raises(unixent.ShapeError, match="target"):
        unixent.cross_entropy(LOGITS, [0], backend="fast")
    assert len(offers) == 3
