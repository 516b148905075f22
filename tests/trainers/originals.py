"""The libraries' own functions, from packages that are installed without what they depend on.

`load` executes one file of a package, without the package's ``__init__``, which would import what is not installed
(ray, deepspeed, flash_attn). Modules that the file imports and does not need for these functions are empty stand-ins;
of others, a mapping has the names that it does need.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any
from unittest import mock

import pytest


def load(package: str, path: str, stand_ins: Iterable[str] | dict[str, dict[str, Any]] = ()) -> Any:
    """The file ``path`` of a package as a module; skips where the package is not installed."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs {package}: pip install --no-deps {package}")
    (file,) = [each for each in files if str(each) == path]
    spec = importlib.util.spec_from_file_location("original", file.locate())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    modules = {name: _StandIn(name) for name in stand_ins}
    for name, members in stand_ins.items() if isinstance(stand_ins, dict) else ():
        vars(modules[name]).update(members)
    with mock.patch.dict(sys.modules, modules):
        spec.loader.exec_module(module)
    return module


class _StandIn(ModuleType):
    """A module that has every name."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=name)


def parameters(function: Any) -> dict[str, Any]:
    """Names of the parameters and their defaults."""
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}
