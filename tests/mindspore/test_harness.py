"""The suite's way in and out of MindSpore."""

from __future__ import annotations

import mindspore as ms
import pytest

from unixent_conformance.harnesses.mindspore import harness


@pytest.mark.parametrize("before", [False, True])
def test_operators_are_queued_in_the_mode_async_alone(before):
    queued = {}
    previous = ms.get_context("pynative_synchronize")
    ms.set_context(pynative_synchronize=before)
    try:
        for mode in harness.modes:
            if not mode.traced:
                queued[mode.name] = not harness.call(lambda: ms.get_context("pynative_synchronize"), [], mode)
        assert ms.get_context("pynative_synchronize") is before
    finally:
        ms.set_context(pynative_synchronize=previous)
    assert [name for name, value in queued.items() if value] == ["async"]
