"""The command line of the study: which peers, which cases, where the page goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import peers
from unixent_conformance import report
from unixent_conformance.cli import run_one, write_reports
from unixent_conformance.report import terminal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[PEER]...", help="Peers to run. Default: all that are installed.")
    ] = None,
    feature: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this feature of the catalogue; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the cases that make a run of seconds.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Another convention is wrong, not a dialect.")] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="JSON reports of other environments, or folders of them; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write the page, JSON, JUnit and Markdown here.")
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="The longest that a case may run.")] = 60,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, metavar="N", help="Worker processes, at the most. Default: one per core."),
    ] = None,
) -> None:
    """Run the conformance catalogue on the cross-entropies of other libraries, and make one page of them.

    Exit code: 0, or 2 where a peer that was named is unknown or cannot be run.
    """
    options: dict[str, Any] = {"features": feature, "quick": quick, "strict": strict, "timeout": timeout}
    at_once = jobs or os.cpu_count() or 1
    raise typer.Exit(study(names or [], merge=merge or [], out=out, jobs=at_once, **options))


def study(
    chosen: Sequence[str],
    *,
    merge: Sequence[Path] = (),
    out: Path | None = None,
    console: Console | None = None,
    **options: Any,
) -> int:
    """Run the peers that are installed here, or those chosen, and write the reports. Returns the exit code.

    merge are JSON reports, or folders of them, from other environments: they join the page, and a report made now takes
    the place of one of the same name. A peer that differs is a result, not a failure.
    """
    console = console or Console()
    code, done = 0, {}
    try:
        listed = [peers.find(name) for name in chosen] or list(peers.PEERS)
        merged = [found for path in merge for found in report.read(path)]
    except (LookupError, ValueError, OSError) as error:
        console.print(f"[bold red]error[/bold red] {escape(str(error))}", highlight=False)
        return 2
    for peer in listed:
        absent = peer.absent()
        if absent:
            console.print(f"[dim]{peer.name}: {absent}[/dim]", highlight=False)
            code = 2 if chosen else code
            continue
        found = run_one(
            console, peer.name, peer.path, peer.harness, {**options, "linear": peer.linear, "isolate": True}
        )
        if found is None:
            code = 2 if chosen else code
            continue
        done[found.implementation] = found
        console.print(terminal.line(found), highlight=False)
    everything = peers.in_order({**{found.implementation: found for found in merged}, **done}.values())
    if out is not None and everything:
        write_reports(console, out, everything, "Cross-entropy across frameworks")
    return code
