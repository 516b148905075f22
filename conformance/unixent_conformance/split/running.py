"""What each process of a split run does, and what the mesh of one process with several devices does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from unixent import ParallelConfig
from unixent_conformance.api import resolve
from unixent_conformance.cases import catalogue
from unixent_conformance.cases.model import Case
from unixent_conformance.harness import Harness
from unixent_conformance.implementation import Implementation
from unixent_conformance.results import Report, Result
from unixent_conformance.runner import Subject, applies, run_case
from unixent_conformance.split.command import Request
from unixent_conformance.split.cutting import over_grid
from unixent_conformance.split.engines import ENGINES, Grid

# Layouts are lost where arrays are cut, and what is malformed cannot be cut.
LEFT_OUT = ("memory layout", "bad input", "fused linear bad input", "second derivatives")


def run_here(request: Request) -> Report | None:
    """The report, on the first process; the others run the same cases in step with it."""
    found, harness = resolve(request.implementation, request.framework)
    cases = [
        case
        for case in catalogue(quick=request.quick, features=tuple(request.features or ()))
        # A property of several calls says no more of a split than its calls do; an error names a position of the part.
        if case.holds is None and (case.raises is None or not case.raises.mentions) and case.feature not in LEFT_OUT
    ]
    grid = ENGINES[request.engine].join(request.data, request.model)
    try:
        results = tuple(_results(found, harness, grid, cases))
    finally:
        grid.leave()
    if grid.rank != (0, 0):
        return None
    name = f"{found.name}, {request.data}x{request.model}"
    version = ", ".join(filter(None, (found.version, harness.version())))
    again = (replace(result, repro=request.line(result) if result.repro else "") for result in results)
    return Report(name, harness.name, version, tuple(again))


def _results(found: Implementation, harness: Harness, grid: Grid, cases: Iterable[Case]) -> Iterator[Result]:
    chosen = list(cases)
    for mode in harness.modes:
        # Parts are cut and joined outside of the framework's sight, where only an eager call can be; arrays that are
        # whole over a mesh are not stacked into a batch.
        if mode.transform and (not grid.whole or mode.transform != "jit"):
            continue
        subject = Subject(harness, with_config(found, grid.config), mode)
        if not grid.whole:
            subject = Subject(harness, over_grid(found, harness, grid, mode))
        yield from (replace(run_case(case, subject), mode=mode.name) for case in chosen if applies(case, mode))


def with_config(found: Implementation, config: ParallelConfig) -> Implementation:
    """The implementation as it is called on arrays that are whole over a mesh."""

    def given(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        return None if function is None else partial(function, parallel=config)

    return replace(
        found,
        loss=partial(found.loss, parallel=config),
        terms=given(found.terms),
        value_and_grad=given(found.value_and_grad),
        linear=given(found.linear),
        linear_value_and_grad=given(found.linear_value_and_grad),
    )
