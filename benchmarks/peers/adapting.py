"""What the adapters share."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

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
