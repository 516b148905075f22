"""Objects by "module:name": a loss of a user's, a harness."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from unixent_conformance.names import did_you_mean, resembling


class CannotLoad(ImportError):
    """A module could not be imported, or has no such name: what it raised, in a line."""


def loaded(path: str, what: str) -> Any:
    """The object of "module:name"; the name may have dots, as an entry point's."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(f"{what}: expected 'module:name'; got {path!r}")
    if "/" in module or "\\" in module or module.endswith(".py"):
        parts = re.split(r"[/\\]", module.removesuffix(".py"))
        dotted = ".".join(part for part in parts if part not in ("", "."))
        raise CannotLoad(f"expected a module as import takes it, {dotted}:{name}; got a file")
    try:
        holder: Any = import_module(module)
    except SyntaxError as error:
        raise CannotLoad(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # whatever its top level does
        raise CannotLoad(f"{type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(holder, part):
            near = resembling(part, vars(holder) if hasattr(holder, "__dict__") else ())
            raise CannotLoad(f"AttributeError: {module} has no {name}{did_you_mean(near)}")
        holder = getattr(holder, part)
    return holder
