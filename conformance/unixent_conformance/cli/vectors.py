"""`unixent vectors export` and `unixent vectors check`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from unixent_conformance.cli import options
from unixent_conformance.cli.prompt import CANNOT_RUN, fail, import_from_here, suite_required

app = typer.Typer(help="Golden vectors: the catalogue's answers as files for any language.", no_args_is_help=True)


@app.command("export")
def export_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if need be.")],
    feature: options.Feature = None,
) -> None:
    """Write a set of golden vectors: manifest.json, arrays.safetensors, schema.json."""
    with suite_required():
        from unixent_conformance import vectors
    try:
        manifest = vectors.export(directory, features=feature or ())
    except CANNOT_RUN as error:
        fail(error)
    size = sum(file.stat().st_size for file in directory.iterdir() if file.is_file()) / 1e6
    print(f"{len(manifest['vectors'])} vectors, version {manifest['version']}, {size:.1f} MB in {directory}")


@app.command("check")
def check_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A set that `export` wrote.")],
    backend: Annotated[str | None, typer.Option("--backend", "-b", metavar="NAME", help="Backend to check.")] = None,
    implementation: options.Implementation = None,
    framework: options.Framework = None,
) -> None:
    """Hold a backend to a set of vectors.

    Exit code: 0 all well, 1 silently wrong or crashed, 2 could not be run, or nothing matches.
    """
    asked = [name for name in (backend, implementation) if name is not None]
    if len(asked) != 1:
        fail("expected either --backend or --implementation")
    with suite_required():
        from unixent_conformance import vectors
        from unixent_conformance.cli.runs import exit_code, with_progress
        from unixent_conformance.report import terminal
    console = Console(emoji=False)
    import_from_here()
    try:
        report = with_progress(console, asked[0], partial(vectors.check, directory, asked[0], framework))
    except CANNOT_RUN as error:
        fail(error)
    console.print(terminal.table(report))
    terminal.print_summary(console, report)
    raise typer.Exit(exit_code(report))
