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
from unixent_conformance.cases import catalogue
from unixent_conformance.cli import options
from unixent_conformance.cli.prompt import print_error
from unixent_conformance.cli.runs import STOPPED, run_one, terminated_as_interrupted, write_reports
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
    budget: options.Budget = None,
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
        budget=budget,
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
    the place of one of the same name. A peer that differs is a result, not a failure. What Ctrl-C or SIGTERM ends is
    written as far as it came.
    """
    console = console or Console(emoji=False)
    try:
        chosen = [peers.find(name) for name in names] or [*peers.OWN, *peers.PEERS]
        catalogue(features=run_options.get("features") or ())  # which says what is unknown, once for all peers
        reports = {each.implementation: each for path in merge for each in report.read(path)}
    except (LookupError, ValueError, OSError) as error:
        print_error(console, error)
        return 2
    code, name = 0, ""
    try:
        with terminated_as_interrupted():
            for peer in chosen:
                name, absent = peer.name, peer.absent()
                if absent:
                    console.print(f"[dim]{name}: {absent}[/dim]", highlight=False)
                    code = 2 if names else code
                    continue
                current = run_one(
                    console, name, peer.path, peer.harness, linear=peer.linear, isolate=True, **run_options
                )
                if current is None:
                    code = 2 if names else code
                    continue
                reports[name] = replace(current, implementation=name)
                console.print(terminal.line(reports[name]), highlight=False)
    except KeyboardInterrupt as stop:
        half = getattr(stop, "report", None)
        code = STOPPED.get(half.stopped if half else str(stop), 130)
        if half is not None and half.cases:  # half a report takes no whole one's place
            reports.setdefault(name, replace(half, implementation=name))
    if out is not None and reports:
        written = write_reports(console, out, peers.in_order(reports.values()), "Cross-entropy across frameworks")
        code = code if written else max(code, 2)
    return code
