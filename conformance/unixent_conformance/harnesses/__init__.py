"""One harness per framework, imported only when asked for.

A package with a backend of its own registers its harness under the entry-point group `unixent_conformance.harnesses`,
by the name of the backend:

    [project.entry-points."unixent_conformance.harnesses"]
    mylib = "unixent_mylib.harness:harness"
"""

from __future__ import annotations

from importlib import import_module, metadata
from importlib.util import find_spec

from unixent_conformance.harness import Harness

GROUP = "unixent_conformance.harnesses"


def load(name: str) -> Harness:
    """The harness of a framework by name, or of any module for a name of the form "module:object"."""
    module, _, attribute = name.partition(":")
    if attribute:
        harness = getattr(import_module(module), attribute)
    elif name.isidentifier() and find_spec(f"{__name__}.{name}") is not None:
        harness = import_module(f"{__name__}.{name}").harness
    else:
        registered = metadata.entry_points(group=GROUP)
        if name not in registered.names:
            raise LookupError(f"no harness is called {name!r}: pass a framework, as 'numpy' or 'module:object'")
        harness = registered[name].load()
    if not isinstance(harness, Harness):
        raise TypeError(f"{name}: expected a Harness; got {type(harness).__name__}")
    harness.path = name if attribute else ""
    return harness
