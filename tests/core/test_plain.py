"""What a backend with `capabilities.fast_path` is offered before a call is checked, and what becomes of a None."""

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
    """The calls that a backend was offered; it answers those whose target is [0, 0] with 7 and leaves the others."""
    found: list[tuple[Any, Any, LossOptions]] = []
    base: Any = type(unixent.get_backend("numpy"))

    class Plain(base):
        name = "plain"
        capabilities = replace(base.capabilities, fast_path=True)

        def try_fast_cross_entropy(self, logits: Any, target: Any, options: LossOptions) -> Any:
            found.append((logits, target, options))
            return 7.0 if list(target) == [0, 0] else None

    monkeypatch.setitem(registry._BY_NAME, "plain", Plain())
    return found


LOGITS = np.array([[2.0, 0.5, -1.0], [0.0, 3.0, 0.0]])


def test_it_is_offered_what_has_no_arrays_beside_logits_and_target(offers: list[Any]) -> None:
    assert unixent.cross_entropy(LOGITS, [0, 0], reduction="sum", backend="plain") == 7
    assert offers == [(LOGITS, [0, 0], LossOptions(reduction="sum"))]
    for side in ("weight", "mask", "normalizer", "parallel"):
        value = {"weight": np.ones(3), "mask": np.ones(2), "normalizer": 2.0, "parallel": unixent.ParallelConfig()}
        assert unixent.cross_entropy(LOGITS, [0, 0], **{side: value[side]}, backend="plain") != 7
    assert len(offers) == 1


def test_options_are_checked_before_and_everything_else_after_a_none(offers: list[Any]) -> None:
    with pytest.raises(unixent.OptionError, match="label_smoothing"):
        unixent.cross_entropy(LOGITS, [0, 0], label_smoothing=2.0, backend="plain")
    assert not offers
    assert unixent.cross_entropy(LOGITS, [0, 1], backend="plain") == unixent.cross_entropy(LOGITS, [0, 1])
    with pytest.raises(unixent.TargetRangeError, match=r"got 3 at position \(1,\)"):
        unixent.cross_entropy(LOGITS, [0, 3], backend="plain")
    with pytest.raises(unixent.ShapeError, match="target"):
        unixent.cross_entropy(LOGITS, [0], backend="plain")
    assert len(offers) == 3
