"""Examples run as a reader runs them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _neighbours_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """tox sets PYTHONSAFEPATH, which a reader does not: a script finds the modules beside it."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
