from __future__ import annotations

from collections.abc import Iterator

import mindspore as ms
import pytest

# Once per process, before anything runs; threads that a graph has no work for spin.
ms.device_context.cpu.op_tuning.threads_num(1)


@pytest.fixture(autouse=True)
def on_cpu(tmp_path, monkeypatch) -> Iterator[None]:
    """MindSpore on CPU, with errors raised where they happen, and its dumps out of the working directory."""
    ms.set_device("CPU")
    ms.runtime.launch_blocking()
    monkeypatch.chdir(tmp_path)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)
