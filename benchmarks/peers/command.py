"""The command line of the study: which peers, which cases, where the page goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import peers
from unixent_conformance import report
from unixent_conformance.api import Interrupted
from unixent_conformance.cli import options
from unixent_conformance.cli.prompt import print_error
from unixent_conformance.cli.runs import run_one, write_reports
from unixent_conformance.report import terminal

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="PEER", help="Peers to run. Default: all that are installed.")
    ] = None,
    feature: options.Feature = None,
    quick: options.Quick = False,
    strict: options.Strict = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="JSON reports of other environments, or folders of them; repeatable."),
    ] = None,
    out: options.Out = None,
    timeout: options.Timeout = 60,
    jobs: options.Jobs = None,
) -> None:
    """Run the conformance catalogue on the cross-entropies of other libraries, beside unixent's backends, and make one
    page of them.

    Exit code: 0, or 2 where a peer that was named is unknown or cannot be run.
    """
    code = study(
        names or [],
        merge=merge or [],
        out=out,
        features=feature,
        quick=quick,
        strict=strict,
        timeout=timeout,
        jobs=jobs or options.cores(),
    )
    raise typer.Exit(code)


def study(
    names: Sequence[str],
    *,
    merge: Sequence[Path] = (),
    out: Path | None = None,
    console: Console | None = None,
    **run_options: Any,
) -> int:
    """Run the peers of these names, or all that are installed here, and write the reports. Returns the exit code.

    merge are JSON reports, or folders of them, from other environments: they join the page, and a report made now takes
    the place of one of the same name. A peer that differs is a result, not a failure.
    """
    console = console or Console()
    try:
        chosen = [peers.find(name) for name in names] or [*peers.OWN, *peers.PEERS]
        reports = {each.implementation: each for path in merge for each in report.read(path)}
    except (LookupError, ValueError, OSError) as error:
        print_error(console, error)
        return 2
    code = 0
    for peer in chosen:
        absent = peer.absent()
        if absent:
            console.print(f"[dim]{peer.name}: {absent}[/dim]", highlight=False)
            code = 2 if names else code
            continue
        try:
            current = run_one(
                console, peer.name, peer.path, peer.harness, linear=peer.linear, isolate=True, **run_options
            )
        except Interrupted:  # a peer half judged is none
            code = 130
            break
        if current is None:
            code = 2 if names else code
            continue
        current = replace(current, implementation=peer.name)
        reports[peer.name] = current
        console.print(terminal.line(current), highlight=False)
    if out is not None and reports:
        write_reports(console, out, peers.in_order(reports.values()), "Cross-entropy across frameworks")
    return code
