"""The libraries' own functions, from packages that are installed without what they depend on (ray, deepspeed,
flash_attn)."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterable
from typing import Any

import pytest

from peers.adapting import load_file


def load(package: str, path: str, stand_ins: Iterable[str] | dict[str, dict[str, Any]] = ()) -> Any:
    """The file ``path`` of a package as a module; skips where the package is not installed."""
    try:
        return load_file(package, path, stand_ins)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs {package}: pip install --no-deps {package}")


def parameters(function: Any) -> dict[str, Any]:
    """Names of the parameters and their defaults."""
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}
