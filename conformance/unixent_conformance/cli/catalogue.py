"""`unixent conformance list`: features, ids of cases, modes, verdicts, dialects, dtypes."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from unixent_conformance.cli import options
from unixent_conformance.cli.prompt import CANNOT_RUN, fail, suite_required, with_default

app = typer.Typer(
    cls=with_default("features"),
    help="List features, cases, modes, verdicts, dialects or dtypes. Without a command: `features`.",
)


@app.command()
def features() -> None:
    """List the features, each with its number of cases and of quick cases."""
    with suite_required():
        from unixent_conformance.cases import catalogue
        from unixent_conformance.model import Tier
    everything, quick = (Counter(case.feature for case in catalogue(tier)) for tier in (Tier.FULL, Tier.QUICK))
    table = _table("feature", "cases", "quick")
    for feature, count in everything.items():
        table.add_row(feature, str(count), str(quick[feature]))
    table.add_section()
    table.add_row(f"all {len(everything)}", str(everything.total()), str(quick.total()))
    Console(emoji=False).print(table, highlight=False)


@app.command()
def cases(feature: options.Feature = None, quick: options.Quick = False) -> None:
    """List the ids of the cases, one a line."""
    with suite_required():
        from unixent_conformance.cases import catalogue
        from unixent_conformance.model import Tier
    try:
        for case in catalogue(Tier.QUICK if quick else Tier.FULL, features=feature or ()):
            print(case.id)
    except ValueError as error:
        fail(error)


@app.command()
def modes(
    frameworks: Annotated[
        list[str] | None, typer.Argument(metavar="FRAMEWORK", help="Default: those of all installed backends.")
    ] = None,
) -> None:
    """List the modes of each framework, and how many cases run in each."""
    with suite_required():
        from unixent_conformance import harnesses
        from unixent_conformance.cases import catalogue
        from unixent_conformance.model import Tier
        from unixent_conformance.selection import select
    table = _table("framework", "mode", "cases", "quick")
    for name in frameworks or options.installed():
        try:
            harness = harnesses.load(name)
        except CANNOT_RUN as error:
            fail(f"{name}: {error}")
        for mode in harness.modes:
            full, quick = (len(list(select(catalogue(), [mode], tier))) for tier in (Tier.FULL, Tier.QUICK))
            table.add_row(harness.name, mode.name, str(full), str(quick))
    Console(emoji=False).print(table, highlight=False)


@app.command()
def verdicts() -> None:
    """List the verdicts, and what each means."""
    with suite_required():
        from unixent_conformance import runner
    print((runner.__doc__ or "").partition("\n\n")[2].strip())


@app.command()
def dialects() -> None:
    """List the dialects, each with its formula."""
    with suite_required():
        from unixent_conformance.dialects import BY_NAME
    table = _table("dialect", "formula")
    for name, dialect in BY_NAME.items():
        table.add_row(name, dialect.formula)
    Console(width=200, emoji=False).print(table, highlight=False)


@app.command()
def dtypes() -> None:
    """List the dtypes that cases have, each with its number of cases."""
    with suite_required():
        from unixent_conformance.cases import catalogue
        from unixent_conformance.selection import DTYPES
    table = _table("dtype", "cases")
    for dtype in DTYPES:
        table.add_row(dtype, str(sum(f"dtype:{dtype}" in case.needs for case in catalogue())))
    Console(emoji=False).print(table, highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        number = column in ("cases", "quick")
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table
