"""One harness per framework, imported only when asked for.

A package with a backend of its own registers its harness under the entry-point group `unixent_conformance.harnesses`,
by the name of the backend:

    [project.entry-points."unixent_conformance.harnesses"]
    mylib = "unixent_mylib.harness:harness"
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from unixent.registry import install_command
from unixent_conformance.harness import Harness
from unixent_conformance.loading import loaded

GROUP = "unixent_conformance.harnesses"
FRAMEWORKS = ("torch", "jax", "mindspore")


def load(name: str) -> Harness:
    """The harness of a framework by name, or of any module for a name of the form "module:object"."""
    own = ":" in name
    if own:
        harness = loaded(name, "framework")
    elif name.isidentifier() and find_spec(f"{__name__}.{name}") is not None:
        try:
            harness = import_module(f"{__name__}.{name}").harness
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ModuleNotFoundError(
                f"framework: {name} is not installed: {install_command(name)}", name=name
            ) from None
    else:
        registered = metadata.entry_points(group=GROUP)
        if name not in registered.names:
            raise LookupError(f"no harness is called {name!r}: pass a framework, as 'numpy' or 'module:object'")
        harness = registered[name].load()
    if not isinstance(harness, Harness):
        raise TypeError(f"{name}: expected a Harness; got {type(harness).__name__}")
    harness.path = name if own else ""
    return harness


def of_callable(function: Callable[..., Any]) -> Harness:
    """The harness of the one framework that the callable's module has names of, or, where it has none of NumPy either,
    of the one that is loaded; numpy's where there is none.

    Raises LookupError where there are several.

    >>> import numpy as np
    >>> of_callable(lambda logits, target: np.float64(0)).name
    'numpy'
    """
    while isinstance(function, partial):
        function = function.func
    module = sys.modules.get(getattr(function, "__module__", None) or type(function).__module__)
    names = set()
    for value in [] if module is None else list(vars(module).values()):
        path = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        names.add(path.partition(".")[0] if isinstance(path, str) else "")
    known = {*FRAMEWORKS, *metadata.entry_points(group=GROUP).names}
    frameworks = sorted(known & names)
    has = "has names of"
    if not names & {"numpy", *frameworks}:  # it leaves the arithmetic to modules of its own
        frameworks, has = [name for name in FRAMEWORKS if name in sys.modules], "works with one of"
    if len(frameworks) > 1:
        named = getattr(function, "__module__", None) or type(function).__module__
        raise LookupError(f"framework: {named} {has} {' and '.join(frameworks)}; say whose arrays it takes")
    return load(frameworks[0] if frameworks else "numpy")
