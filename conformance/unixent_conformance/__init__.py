"""Does a cross-entropy mean what it says? A catalogue of cases, an exact oracle, an error model, a verdict on each.

    unixent conformance --backend numpy
    pytest --pyargs unixent_conformance -p unixent_conformance.plugin --unixent-backend numpy

and from Python, for a backend of unixent or for any callable that takes what `unixent.cross_entropy` takes:

>>> import unixent_conformance
>>> unixent_conformance.run("numpy", features=("mask",), quick=True).ok
True

How the pieces fit: `cases` says what is called and what must hold, `oracle` gives the exact answer, `tolerance` how far
from it an honest implementation may be. `harness` (read it to add a framework: ten lines) says how arrays go in and
out, `runner` gives the verdicts, `report` shows them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unixent_conformance.agreement import compare
    from unixent_conformance.api import case, check, run, subject
    from unixent_conformance.model import Call
    from unixent_conformance.parametrize import parametrize_with_cases
    from unixent_conformance.results import Agreement, Report

__all__ = ["Agreement", "Call", "Report", "case", "check", "compare", "parametrize_with_cases", "run", "subject"]

_HOMES = {
    "Agreement": "unixent_conformance.results",
    "Call": "unixent_conformance.model",
    "Report": "unixent_conformance.results",
    "compare": "unixent_conformance.agreement",
    "parametrize_with_cases": "unixent_conformance.parametrize",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the pytest plugin of this package is imported in every pytest run of its users.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "unixent_conformance.api")), name)
