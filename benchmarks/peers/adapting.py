"""What the adapters share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any
from unittest import mock

from unixent_conformance.harness import Unsupported
from unixent_conformance.implementation import Implementation, wrap
from unixent_conformance.model import UNPROMISED

# A loud word about the arguments. Anything else (an attribute that is missing, an unbound name) is an internal error,
# and so a crash.
REFUSALS = (TypeError, ValueError, IndexError, NotImplementedError, RuntimeError, AssertionError)

DTYPES = ("float16", "bfloat16", "float32", "float64")


def peer(name: str, loss: Callable[..., Any], *distributions: str, **more: Any) -> Implementation:
    """An implementation of a library's loss: its options from the signature, versions from the distributions."""
    from dataclasses import replace

    return replace(
        wrap(loss),
        name=name,
        # No peer promises the bits of a row to be the same in every batch.
        capabilities=UNPROMISED | {*(f"dtype:{dtype}" for dtype in DTYPES), "target:index", "target:probability"},
        refusals=REFUSALS,
        version=", ".join(f"{name} {metadata.version(name)}" for name in distributions),
        **more,
    )


def flat(target: Any, positions: tuple[int, ...]) -> Any:
    """The indices of all positions in a row, for a library that takes rows; a wrong shape must not vanish in it."""
    if tuple(target.shape) != tuple(positions):
        raise ValueError(f"target of shape {tuple(target.shape)} for positions {tuple(positions)}")
    return target.reshape(-1)


def only(argument: str, value: Any, *known: Any) -> None:
    """Refuse a value of an option that the library does not have."""
    if value not in known:
        raise Unsupported(f"{argument} has no {value!r}")


def nll_reduced(log_p: Any, reduction: str) -> Any:
    """The loss of log-probabilities, where mean and sum are the caller's."""
    only("reduction", reduction, "none", "sum", "mean")
    return -log_p if reduction == "none" else -getattr(log_p, reduction)()


def load_file(distribution: str, path: str, stand_ins: Iterable[str] | dict[str, dict[str, Any]] = ()) -> Any:
    """One file of a distribution as a module, without the ``__init__`` of its package, which would import what is not
    installed. Modules that the file imports and does not need for what is tested are empty stand-ins; of others, a
    mapping has the names that it does need."""
    (file,) = [each for each in metadata.files(distribution) or [] if str(each) == path]
    # Triton's interpreter looks a kernel's source up by its module.
    spec = spec_from_file_location(path.removesuffix(".py").replace("/", "."), file.locate())
    if spec is None or spec.loader is None:
        raise ImportError(f"{distribution} has no {path}")
    module = module_from_spec(spec)
    modules = {name: StandIn(name) for name in stand_ins}
    for name, members in stand_ins.items() if isinstance(stand_ins, dict) else ():
        vars(modules[name]).update(members)
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        spec.loader.exec_module(module)
    finally:
        # These alone: what the file imported stays, since extension modules cannot be loaded twice.
        for name, replaced in before.items():
            sys.modules.pop(name, None)
            if replaced is not None:
                sys.modules[name] = replaced
    return module


class StandIn(ModuleType):
    """A module that has every name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # a package, too

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=name)
