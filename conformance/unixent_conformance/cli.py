"""The command `unixent conformance`, less its parsing of arguments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from unixent_conformance import report
from unixent_conformance.agreement import compare
from unixent_conformance.api import run
from unixent_conformance.report import agreements, terminal
from unixent_conformance.results import Report
from unixent_conformance.split import Request, parse, run_split

# What keeps one implementation from being run; the others are still run.
CANNOT_RUN = (ImportError, LookupError, ValueError, TypeError, AttributeError)


def run_command(
    backends: Sequence[str],
    *,
    implementation: str | None = None,
    framework: str | None = None,
    split: str | None = None,
    out: Path | None = None,
    console: Console | None = None,
    **options: Any,
) -> int:
    """Run the catalogue on each backend, or on one implementation given as "module:function", and show the tables.

    split is DATAxMODEL, to run it over as many processes; out the folder to write reports to; the other options are
    those of `unixent_conformance.run`. Returns the exit code: 0 where everything matches, is a dialect or is refused as
    declared, 1 on anything silently wrong or crashed, 2 where what was asked for cannot be run (an unknown or
    uninstalled backend, no such function or feature), with one line that says why.
    """
    console = console or Console()
    code, done = 0, []
    for name in [*backends, *([implementation] if implementation else [])]:
        if split is None:
            found = run_one(console, name, name, framework, options)
        else:
            found = _split(console, name, framework, split, options)
        if found is None:
            code = 2
            continue
        done.append(found)
        console.print(terminal.table(found))
        if found.ok:
            console.print("[green]ok[/green]: nothing silently wrong, nothing crashed", highlight=False)
        else:
            terminal.print_failures(console, found)
            code = max(code, 1)
    if out is not None and done:
        write_reports(console, out, done, f"Conformance of {', '.join(found.implementation for found in done)}")
    return code


def compare_command(
    implementations: Sequence[str], *, out: Path | None = None, console: Console | None = None, **options: Any
) -> int:
    """Run the catalogue through all of them and show how far apart each pair is.

    out is the folder to write agreement.md and agreement.json to; the other options are those of
    `unixent_conformance.compare`. Returns 0 where all agree, 1 where two differ by more than the error model allows, 2
    where they cannot be compared.
    """
    console = console or Console()
    try:
        with terminal.progress_bar(console) as bar:
            advance = partial(terminal.advance, bar, bar.add_task("compare", total=None))
            found = compare(implementations, progress=advance, **options)
    except CANNOT_RUN as error:
        console.print(f"[bold red]error[/bold red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    console.print(agreements.table(found))
    agreements.print_summary(console, found)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".md", agreements.to_markdown(found)), (".json", found.to_json())):
            (out / f"agreement{suffix}").write_text(text, encoding="utf-8")
        console.print(f"{out / 'agreement.md'} and agreement.json", highlight=False, soft_wrap=True)
    return 0 if found.ok else 1


def run_one(console: Console, name: str, tested: str, framework: str | None, options: dict[str, Any]) -> Report | None:
    try:
        with terminal.progress_bar(console) as bar:
            advance = partial(terminal.advance, bar, bar.add_task(name, total=None))
            return run(tested, framework, progress=advance, **options)
    except CANNOT_RUN as error:
        console.print(f"[bold red]error[/bold red] {name}: {escape(str(error))}", highlight=False, soft_wrap=True)
        return None


def _split(console: Console, tested: str, framework: str | None, split: str, options: dict[str, Any]) -> Report | None:
    """A run over several processes, which answer only at their end."""
    features = options.get("features")
    try:
        data, model = parse(split)
        engine = framework or ("numpy" if ":" in tested else tested)
        chosen = None if features is None else tuple(features)
        request = Request(tested, engine, data, model, framework, chosen, options.get("quick", False))
        with console.status(f"{tested} on {data * model} processes"):
            return run_split(request)
    except (*CANNOT_RUN, RuntimeError, OSError) as error:
        console.print(f"[bold red]error[/bold red] {tested}: {escape(str(error))}", highlight=False, soft_wrap=True)
        return None


def write_reports(console: Console, out: Path, reports: Sequence[Report], title: str) -> None:
    written = report.write(out, reports, title)
    console.print(f"{written[0]} and {len(written) - 1} more files", highlight=False, soft_wrap=True)
