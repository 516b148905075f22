"""The suite under pytest.

    pytest --pyargs unixent_conformance -p unixent_conformance.plugin --unixent-backend numpy

This module is also a `pytest11` entry point, so it is imported in every pytest run of whoever installed unixent: it
imports nothing but pytest until one of its options is used. The entry point bears the module's own name, so that pytest
takes `-p unixent_conformance.plugin` and the entry point for one plugin.
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from contextlib import suppress
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from unixent_conformance.harness import Harness
    from unixent_conformance.implementation import Implementation
    from unixent_conformance.selection import Choice


def _seconds(text: str) -> float:
    """A time that is none, such as -1, would skip every case and end well."""
    with suppress(ValueError):
        if float(text) >= 0:
            return float(text)
    raise ArgumentTypeError(f"expected seconds; got {text}")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("unixent", "unixent conformance")
    group.addoption(
        "--unixent-backend",
        action="append",
        default=[],
        metavar="NAME",
        help="backend of unixent to test; repeatable; one that is named must be installed (default: all that are)",
    )
    group.addoption(
        "--unixent-implementation",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="callable to test in place of a backend; repeatable",
    )
    group.addoption(
        "--unixent-framework",
        metavar="NAME",
        help="harness to use: a name, or module:object (default: that of the framework that a callable's module has "
        "names of)",
    )
    group.addoption("--unixent-quick", action="store_true", help="only the cases that make a run of seconds")
    group.addoption(
        "--unixent-thorough",
        action="store_true",
        help="all cases under every mode but forward and vmap, those that cost a compilation each included: hours for "
        "some frameworks",
    )
    for option, metavar, text in (
        ("--unixent-modes", "NAMES", "only these modes, separated by commas: eager,autograd"),
        ("--unixent-dtype", "NAMES", "only cases of these dtypes; repeatable"),
        ("--unixent-skip", "PATTERN", "leave out a feature, or the ids that a pattern matches; repeatable"),
    ):
        group.addoption(option, action="append", default=[], metavar=metavar, help=text)
    group.addoption(
        "--unixent-budget", type=_seconds, metavar="SECONDS", help="what tells most first; what is left then is skipped"
    )
    group.addoption("--unixent-device", metavar="NAME", help="where the harness puts its arrays: cuda:0")
    group.addoption(
        "--unixent-xfails",
        metavar="FILE",
        help="known failures, a line each: an id as pytest prints it between brackets, a '#', the reason; "
        "an unexpected pass fails, an id that no case has is an error",
    )


def chosen(config: pytest.Config) -> list[str]:
    """What was asked for by name."""
    return [*config.getoption("--unixent-backend"), *config.getoption("--unixent-implementation")]


def choice(config: pytest.Config) -> Choice:
    """Which cases the options ask for."""
    from unixent_conformance.names import parted
    from unixent_conformance.selection import Choice

    modes, dtypes = parted(config.getoption("--unixent-modes")), parted(config.getoption("--unixent-dtype"))
    skip = tuple(config.getoption("--unixent-skip"))
    return Choice(config.getoption("--unixent-quick"), (), modes, dtypes, skip)


def find_tested(config: pytest.Config, name: str) -> tuple[Implementation, Harness]:
    """The implementation and harness of a name; one that cannot be had is an error of usage."""
    from unixent_conformance import api

    # As on the command line: a module in the directory where pytest was called.
    here = str(config.invocation_params.dir)
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        implementation, harness = api.find_tested(name, config.getoption("--unixent-framework"))
        device = config.getoption("--unixent-device")
        return implementation, harness if device is None else harness.on(device)
    except (ImportError, LookupError, AttributeError, ValueError, TypeError) as error:
        raise pytest.UsageError(f"{name}: {error}") from error


@pytest.fixture(scope="session")
def budget_end(pytestconfig: pytest.Config) -> float:
    """When the budget of the run is over, from its first case on."""
    budget = pytestconfig.getoption("--unixent-budget")
    return inf if budget is None else monotonic() + float(budget)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is tested: name, versions, settings."""
    lines = []
    for name in chosen(config):
        implementation, harness = find_tested(config, name)
        modes = ", ".join(mode.name for mode in harness.modes)
        versions = f"{implementation.version or 'no version'}, {harness.version()}"
        lines.append(f"unixent conformance: {implementation.name}: {versions}; modes: {modes}")
    return lines


def xfails(config: pytest.Config, known: set[str], elsewhere: tuple[str, ...]) -> dict[str, str]:
    """The expected failures; an id that matches no case is an error, unless it starts like those of a backend that is
    not among the tested."""
    path = config.getoption("--unixent-xfails")
    if not path:
        return {}
    from unixent_conformance.xfails import read

    try:
        reasons = read(Path(path))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"--unixent-xfails: {error}") from error
    unmatched = sorted(id for id in set(reasons) - known if not id.startswith(elsewhere))
    if unmatched:
        raise pytest.UsageError(f"{path}: no case has the id {', '.join(unmatched)}")
    return reasons
