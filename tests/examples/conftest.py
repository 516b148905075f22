"""Examples run as a reader runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def _neighbours_importable() -> Iterator[None]:
    """tox sets PYTHONSAFEPATH, which a reader does not: a script finds the modules beside it.

    Of a module, since fixtures of one run examples too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONSAFEPATH", raising=False)
        yield
