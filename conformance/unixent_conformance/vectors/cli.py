"""`unixent vectors export` and `unixent vectors check`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(help="Golden vectors: the catalogue's answers as files for any language.", no_args_is_help=True)


@app.command("export")
def export_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if need be.")],
    feature: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this feature of the catalogue; repeatable.")
    ] = None,
) -> None:
    """Write a set of golden vectors: manifest.json, arrays.safetensors, schema.json."""
    try:
        from unixent_conformance import vectors

        manifest = vectors.export(directory, features=feature or ())
    except (ImportError, OSError, ValueError) as error:
        _fail(error)
    size = sum(file.stat().st_size for file in directory.iterdir() if file.is_file()) / 1e6
    print(f"{len(manifest['vectors'])} vectors, version {manifest['version']}, {size:.1f} MB in {directory}")


@app.command("check")
def check_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A set that `export` wrote.")],
    backend: Annotated[str | None, typer.Option("--backend", "-b", metavar="NAME", help="Backend to check.")] = None,
    implementation: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Check a callable of yours instead.")
    ] = None,
    framework: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose arrays it takes. Default: the backend's own, or numpy.")
    ] = None,
) -> None:
    """Hold a backend to a set of vectors. Exit code: 0 all well, 1 silently wrong or crashed, 2 could not be run."""
    if (backend is None) == (implementation is None):
        _fail("expected either --backend or --implementation")
    console = Console()
    sys.path.insert(0, str(Path.cwd()))  # a module beside the person who types is meant
    try:
        from unixent_conformance import vectors
        from unixent_conformance.report import terminal

        with terminal.progress_bar(console) as bar:
            advance = partial(terminal.advance, bar, bar.add_task(backend or implementation or "", total=None))
            done = vectors.check(directory, backend or implementation, framework, progress=advance)
    except (ImportError, LookupError, ValueError, TypeError, AttributeError) as error:
        _fail(error)
    console.print(terminal.table(done))
    if not done.ok:
        terminal.print_failures(console, done)
        raise typer.Exit(1)


def _fail(reason: object) -> NoReturn:
    """A mistake at the prompt: one line, exit code 2, no traceback."""
    Console(stderr=True).print(f"[bold red]error[/bold red] {escape(str(reason))}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)
