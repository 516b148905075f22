from __future__ import annotations

from collections.abc import Iterator

import mindspore as ms
import pytest

# Once per process, before anything runs, tests of other folders included; threads that a graph has no work for spin.
ms.set_device("CPU")
ms.device_context.cpu.op_tuning.threads_num(1)


@pytest.fixture(autouse=True)
def _in_step(tmp_path, monkeypatch) -> Iterator[None]:
    """Errors raised where they happen, and dumps out of the working directory."""
    ms.runtime.launch_blocking()
    monkeypatch.chdir(tmp_path)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)
