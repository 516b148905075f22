"""Every case of the catalogue as a test, for each backend or implementation asked for."""

from __future__ import annotations

from time import monotonic

import pytest

from unixent_conformance import plugin
from unixent_conformance.cases import catalogue
from unixent_conformance.model import Case
from unixent_conformance.runner import run_case
from unixent_conformance.selection import by_weight, select
from unixent_conformance.under_test import Subject


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    named = plugin.chosen(config)
    parameters, known = [], set()
    for name in named or _registered():
        try:
            implementation, harness = plugin.find_tested(config, name)
        except pytest.UsageError as error:
            if named:
                raise
            reason = f"{error} (name it with --unixent-backend to make this an error)"
            parameters.append(pytest.param(None, None, id=name, marks=pytest.mark.skip(reason=reason)))
            continue
        thorough = config.getoption("--unixent-thorough")
        modes = [mode.thorough() if thorough else mode for mode in harness.modes]
        known |= {f"{name}-{mode.name}-{case.id}" for case, mode in select(catalogue(), modes)}
        try:
            asked = [case for case in catalogue() if implementation.answers(case)]
            pairs = plugin.choice(config).of(asked, modes, catalogue())
            if config.getoption("--unixent-budget") is not None:
                pairs = by_weight(pairs)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        parameters += [
            pytest.param(case, Subject(harness, implementation, mode), id=f"{name}-{mode.name}-{case.id}")
            for case, mode in pairs
        ]
    if named and not parameters:
        raise pytest.UsageError("unixent conformance: no case is all that was asked for")
    elsewhere = tuple(f"{name}-" for name in _registered() if name not in named) if named else ()
    reasons = plugin.xfails(config, known, elsewhere)
    marked = [
        pytest.param(*p.values, id=p.id, marks=pytest.mark.xfail(strict=True, reason=reasons[str(p.id)]))
        if str(p.id) in reasons
        else p
        for p in parameters
    ]
    metafunc.parametrize(("case", "subject"), marked)


def _registered() -> list[str]:
    import unixent

    return [status.name for status in unixent.backends()]


def test_conformance(case: Case, subject: Subject, budget_end: float) -> None:
    if monotonic() > budget_end:
        pytest.skip("the seconds of --unixent-budget were over")
    result = run_case(case, subject)
    if not result.verdict.ok:
        pytest.fail(f"{result.verdict.value}: {result.detail}\n\n{result.repro}", pytrace=False)
    if result.verdict.value == "refuses":
        pytest.skip(f"refuses, as declared: {result.detail}")
