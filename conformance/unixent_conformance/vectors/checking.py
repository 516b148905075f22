"""From files to verdicts: the stored answers, not the oracle's, decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unixent_conformance.api import find_tested
from unixent_conformance.model import Array, Call, Case, Raises, Tier
from unixent_conformance.results import Report
from unixent_conformance.runner import run_cases
from unixent_conformance.selection import select
from unixent_conformance.tolerance import Comparison
from unixent_conformance.under_test import Subject
from unixent_conformance.vectors import files


@dataclass(frozen=True)
class Golden:
    """One array of a stored answer."""

    name: str
    value: Array
    bound: Array
    dtype: str

    def compare(self, got: Array) -> Comparison:
        """|got - value| <= bound, entry by entry; NaN and infinities must be the same."""
        wrong = Comparison.of_form(self.name, got, self.value.shape, self.dtype)
        if wrong is not None:
            return wrong
        wide = got.astype(np.longdouble)
        with np.errstate(all="ignore"):
            error = abs(wide - self.value)
            units = np.where(error == 0, 0, error / self.bound)
            same = (wide == self.value) | (np.isnan(wide) & np.isnan(self.value))
            units = np.where(same, 0, np.where(np.isfinite(wide) & np.isfinite(self.value), units, np.inf))
        return Comparison.worst(units, wide, self.value, self.bound)


def check(
    folder: str | Path,
    tested: Any,
    framework: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Hold an implementation to a set of vectors; the arguments are those of `unixent_conformance.run`. Modes of the
    harness that compile each call are left to the catalogue.

    Raises `Malformed` where the directory is no set of vectors of this major version.
    """
    manifest, arrays = files.read(folder)
    try:
        cases = [_case(vector, arrays) for vector in manifest["vectors"]]
    except (KeyError, TypeError) as error:
        raise files.Malformed(f"{folder}: {type(error).__name__}: {error}; see {files.SCHEMA}") from error
    implementation, harness = find_tested(tested, framework)
    pairs, results = list(select(cases, harness.modes)), []
    for result in run_cases(pairs, Subject(harness, implementation)):
        results.append(result)
        if progress is not None:
            progress(len(results), len(pairs))
    version = f"vectors {manifest['version']}, {harness.version()}"
    return Report(implementation.name, harness.name, version, tuple(results))


def _case(vector: dict[str, Any], arrays: dict[str, Array]) -> Case:
    _call(vector, arrays)  # what is missing is missed here
    due = vector.get("raises")
    parts = [Golden(e["name"], arrays[e["value"]], arrays[e["bound"]], e["dtype"]) for e in vector["expected"]]
    return Case(
        vector["id"],
        vector["feature"],
        partial(_call, vector, arrays),
        vector["asks"],
        frozenset(vector["needs"]),
        Raises(due["error"], due["argument"]) if due else None,
        stored=lambda: parts,
        tiers=frozenset({Tier.QUICK, Tier.SAMPLED}),  # in each framework, but for its modes of core cases
    )


def _call(vector: dict[str, Any], arrays: dict[str, Array]) -> Call:
    """A call of copies, so that nothing an implementation writes reaches the next vector."""
    named = {name: arrays[key].copy() for name, key in vector["inputs"].items()}
    options, topk = dict(vector["options"]), vector.get("topk", {})
    if "normalizer" in named:
        options["normalizer"] = named.pop("normalizer")
    return Call(
        named.pop("logits", None),
        named.pop("target"),
        grad_output=named.pop("grad_output", None),
        options=options,
        statistic=vector.get("output", ""),
        tail=topk.get("tail", ""),
        log_probs=topk.get("values") == "log_probs",
        **named,
    )
