"""What each process of a split run does, and what the mesh of one process with several devices does."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any
from zlib import crc32

from unixent import ParallelConfig
from unixent_conformance.api import find_tested
from unixent_conformance.cases import catalogue
from unixent_conformance.harness import Mode
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Case, Tier
from unixent_conformance.results import Report
from unixent_conformance.runner import run_cases
from unixent_conformance.selection import select
from unixent_conformance.split.command import Request
from unixent_conformance.split.engines import ENGINES, ProcessMesh
from unixent_conformance.split.shards import ShardedSubject
from unixent_conformance.under_test import Subject

# Layouts are lost where arrays are cut, what is malformed cannot be cut, and two passes give a part's own gradient.
LEFT_OUT = ("memory layout", "bad input", "fused linear bad input", "second derivatives", "two backward passes")
# What not every backend splits: the capability that says so, by what a case needs.
DECLARED = {"position_stats": "parallel_position_stats", "target:sparse": "parallel target:sparse"}
# One of so many of its quick cases: each communicates many times.
SAMPLE = 4


def run_here(request: Request) -> Report | None:
    """The report, on the first process; the others run the same cases in step with it."""
    # First: what a backend says of its devices fixes how many JAX has.
    mesh = ENGINES[request.engine].join(request.data, request.model)
    try:
        return _report(request, mesh)
    finally:
        mesh.leave()


def _report(request: Request, mesh: ProcessMesh) -> Report | None:
    tested, harness = find_tested(request.implementation, request.framework)
    cases = catalogue(request.tier, features=request.features or ())
    parallel, modes = with_config(tested, mesh.config), [mode for mode in harness.modes if can_run(mode, mesh)]
    subject = Subject(harness, parallel) if mesh.is_global else ShardedSubject(harness, parallel, mesh=mesh)
    sampled = request.tier < (Tier.QUICK if request.features else Tier.FULL)
    split = [case for case in cases if can_be_split(case) and can_answer(case, tested, sampled)]
    results = tuple(run_cases(select(split, modes), subject))
    if mesh.rank != (0, 0):
        return None
    name = f"{tested.name}, {request.data}x{request.model}"
    version = ", ".join(filter(None, (tested.version, harness.version())))
    again = (replace(result, repro=request.line(result) if result.repro else "") for result in results)
    return Report(name, harness.name, version, tuple(again))


def can_be_split(case: Case) -> bool:
    """A property of several calls says no more of a split than its calls do; an error names a position of the part."""
    names_a_position = case.raises is not None and bool(case.raises.mentions)
    return case.property is None and not names_a_position and case.feature not in LEFT_OUT


def can_answer(case: Case, tested: Implementation, sampled: bool) -> bool:
    """Statistics and sparse targets, where they are split at all; of their many quick cases some, unless they are asked
    for by name; of sampled ones some in any case."""
    needed = {DECLARED[need] for need in case.needs & DECLARED.keys()}
    served = tested.capabilities is None or needed <= tested.capabilities
    return served and (not (needed and sampled) or crc32(case.id.encode()) % SAMPLE == 0)


def can_run(mode: Mode, mesh: ProcessMesh) -> bool:
    """Parts are cut and joined outside of the framework's sight, where only an eager call can be; arrays that are
    global over a mesh are not stacked into a batch."""
    return not mode.transform or (mesh.is_global and mode.transform == "jit")


def with_config(tested: Implementation, config: ParallelConfig) -> Implementation:
    """The implementation with each of its functions called as in parallel."""

    def given(function: Any) -> Any:
        return None if function is None else partial(function, parallel=config)

    functions = [each.name for each in fields(tested) if str(each.type).startswith("Callable")]
    return replace(tested, **{name: given(getattr(tested, name)) for name in functions})
