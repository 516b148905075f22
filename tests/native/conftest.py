"""The library's tests import the modules beside them, and are skipped where it was not built."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from unixent_native.library import Library, load


@pytest.fixture(scope="session")
def native_library() -> Library:
    loaded = load()
    if loaded is None:
        pytest.skip(
            "the native kernel was not built, or is switched off: python hatch_build.py builds it in a checkout"
        )
    return loaded


@pytest.fixture(params=["avx2", "avx512", "neon", "plain"])
def each_isa(request, native_library) -> Library:
    if request.param not in native_library.isas:
        pytest.skip(f"this machine has {', '.join(native_library.isas)}")
    return native_library._replace(isa=native_library.isas.index(request.param))
