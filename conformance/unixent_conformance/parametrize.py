"""The suite inside a test file of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pytest

from unixent_conformance.api import Prepared, importable, prepare
from unixent_conformance.isolation import Task
from unixent_conformance.names import did_you_mean, resembling
from unixent_conformance.results import Verdict
from unixent_conformance.selection import Choice

Test = Callable[..., Any]


@dataclass(frozen=True)
class Check:
    """One case in one mode; calling it fails or skips the test that calls it, or does neither."""

    prepared: Prepared
    id: str
    mode: str

    def __call__(self) -> None:
        result = self.prepared.judge(self.id, self.mode)
        if not result.verdict.ok:
            pytest.fail(f"{result.verdict.value}: {result.detail}\n\n{result.repro}", pytrace=False)
        if result.verdict is Verdict.REFUSES:
            pytest.skip(f"refuses, as declared: {result.detail}")


def parametrize_with_cases(
    implementation: Any,
    framework: str | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> Callable[[Test], Test]:
    """Run a test once for each case of the catalogue, in each mode of the framework.

        from unixent_conformance import parametrize_with_cases

        @parametrize_with_cases("mylib.losses:fused", framework="torch", expected_failures={
            "eager-softcap/hard/float32-sum/value": "the cap comes after the mask: issue 12",
        })
        def test_conformance(check):
            check()

    The test has an argument `check`; calling it fails the test where the implementation is silently wrong or crashes,
    with lines to paste, and skips it where it refuses.

    implementation, framework: as `unixent_conformance.run` takes them.
    expected_failures: ids of cases, as pytest prints them between brackets, with reasons. These tests must fail: one
        that passes is a failure, so that the list stays true.
    options: features, quick, modes, dtypes, skip, huge, strict, linear and device, as `unixent_conformance.run` takes
        them.

    Cases run in the test's own process, so a segfault ends the session; the command line isolates them.

    Raises ValueError where an id names no case of this run, or has no reason, or no case is chosen.
    """
    asked = {name: options.pop(name) for name in list(options) if name in {field.name for field in fields(Choice)}}
    given: dict[str, Any] = {
        name: value if name in ("quick", "huge") else tuple(value or ()) for name, value in asked.items()
    }
    unknown = sorted(set(options) - {"strict", "linear", "device"})
    if unknown:
        raise TypeError(f"parametrize_with_cases: no such option: {', '.join(unknown)}")
    task = Task(importable(implementation) or "", framework, Choice(**given), **options)
    prepared = prepare(task, implementation)
    checks = {f"{mode}-{id}": Check(prepared, id, mode) for id, mode in prepared.plan.cases}
    if not checks:  # pytest would skip the test, and end well
        raise ValueError("parametrize_with_cases: no case is all that was asked for")
    reasons = dict(expected_failures or {})
    missing = sorted(set(reasons) - set(checks))
    if missing:
        near = [each for id in missing for each in resembling(id, checks, 1)]
        text = f"no case of this run has the id {', '.join(missing)}{did_you_mean(near)}"
        raise ValueError(f"expected_failures: {text}")
    without = sorted(id for id, reason in reasons.items() if not reason.strip())
    if without:
        raise ValueError(f"expected_failures: expected a reason for {', '.join(without)}")
    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                check, id=id, marks=[pytest.mark.xfail(strict=True, reason=reasons[id])] if id in reasons else []
            )
            for id, check in checks.items()
        ],
    )
