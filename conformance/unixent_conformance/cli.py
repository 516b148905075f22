"""The command `unixent conformance`, less its parsing of arguments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Console

from unixent_conformance import report
from unixent_conformance.api import resolve, run


def run_command(
    backends: Sequence[str],
    *,
    implementation: str | None = None,
    framework: str | None = None,
    features: Sequence[str] | None = None,
    quick: bool = False,
    console: Console | None = None,
) -> int:
    """Run the catalogue on each backend, or on one implementation given as "module:function", and show the tables.

    Returns the exit code: 0 where everything matches or is refused as declared, 1 on anything silently wrong or
    crashed, 2 where what was asked for cannot be run (an unknown or uninstalled backend, no such function or feature),
    with one line that says why.
    """
    console = console or Console()
    code = 0
    for name in [*backends, *([implementation] if implementation else [])]:
        try:
            found, harness = resolve(name, framework)
            with report.progress_bar(console) as bar:
                advance = partial(report.advance, bar, bar.add_task(name, total=None))
                done = run(found, framework or harness.name, features=features, quick=quick, progress=advance)
        except (ImportError, LookupError, ValueError, TypeError, AttributeError) as error:
            console.print(f"[bold red]error[/bold red] {name}: {error}", highlight=False)
            code = 2
            continue
        console.print(report.table(done))
        if not done.ok:
            report.print_failures(console, done)
            code = max(code, 1)
    return code
