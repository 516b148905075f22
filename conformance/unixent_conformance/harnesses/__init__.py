"""One harness per framework, imported only when asked for."""

from __future__ import annotations

from importlib import import_module

from unixent_conformance.harness import Harness


def load(name: str) -> Harness:
    """The harness of a framework by name: the object `harness` of `unixent_conformance.harnesses.<name>`, or of any
    module for a name of the form "module:object"."""
    module, _, attribute = name.partition(":")
    if not attribute:
        module, attribute = f"{__name__}.{name}", "harness"
    found = getattr(import_module(module), attribute)
    if not isinstance(found, Harness):
        raise TypeError(f"{name}: expected a Harness; got {type(found).__name__}")
    return found
