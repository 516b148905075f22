"""The command line: which backends there are, and whether one means what it should. Needs the extra `conformance`."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import unixent
from unixent.errors import UnixentError
from unixent.protocol import Capabilities
from unixent.registry import BackendStatus
from unixent_conformance.vectors.cli import app as vectors

app = typer.Typer(
    help="One cross-entropy for NumPy, PyTorch, JAX and MindSpore.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(vectors, name="vectors")
# Values of a result, in the order in which a person asks for them.
_DTYPES = ("float16", "bfloat16", "float32", "float64")
_FLAGS = {"linear": "fused linear", "parallel": "parallel", "batch_invariant": "batch invariant"}


def _fail(message: str) -> NoReturn:
    """A mistake at the prompt: one line, exit code 2, no traceback."""
    Console(stderr=True).print(f"[bold red]error[/bold red] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"unixent {unixent.__version__} (NumPy {np.__version__}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions and exit.")
    ] = False,
) -> None:
    """Options that belong to no command."""


def _described(name: str) -> BackendStatus | str:
    """The full row of an installed backend, or why it cannot be loaded: a broken framework must not hide the others."""
    try:
        return unixent.backends(name)[0]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _summary(found: Capabilities) -> str:
    dtypes = [dtype for dtype in _DTYPES if dtype in found.dtypes]
    targets = [f"{target} targets" for target in sorted(found.targets)]
    flags = [text for name, text in _FLAGS.items() if getattr(found, name)]
    lines = (dtypes, targets, sorted(found.transforms), flags)
    return "\n".join(", ".join(line) for line in lines if line)


@app.command()
def backends() -> None:
    """List the backends: installed or not, versions, devices, what each can do. Loads the installed ones."""
    console = Console()
    table = Table(box=None, pad_edge=False, padding=(0, 3, 1, 0))
    for heading in ("backend", "version", "devices"):
        table.add_column(heading, no_wrap=True)
    table.add_column("takes and does")
    for status in unixent.backends():
        found: BackendStatus | str = status
        if status.installed:
            with console.status(f"loading {status.name}"):
                found = _described(status.name)
        if isinstance(found, str):
            table.add_row(f"[red]{escape(status.name)}[/red]", status.version, "", f"[red]{escape(found)}[/red]")
        elif found.capabilities is None:
            hint = f"not installed: [bold]{escape(found.hint or '')}[/bold]"
            table.add_row(f"[dim]{escape(found.name)}[/dim]", "[dim]-[/dim]", "[dim]-[/dim]", hint)
        else:
            name, devices = f"[green]{escape(found.name)}[/green]", "\n".join(found.devices or ())
            table.add_row(name, found.version, escape(devices), _summary(found.capabilities))
    console.print(table, highlight=False)


@app.command()
def conformance(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[BACKEND]...", help="Backends to test. Default: all installed.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", "-b", metavar="NAME", help="The same as an option; repeatable.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run every case through all of them, and say how far apart each pair is.")
    ] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="With --compare: every case, also where a framework makes it dear.")
    ] = False,
    implementation: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Test a callable of yours that takes what cross_entropy takes."),
    ] = None,
    framework: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose arrays it takes. Default: the backend's own; numpy for a callable."),
    ] = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="Test the fused linear form, of (hidden, classifier, target).")
    ] = False,
    feature: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this feature of the catalogue; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the cases that make a run of seconds.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Another convention is wrong, not a dialect.")] = False,
    split: Annotated[
        str | None,
        typer.Option(metavar="DxM", help="Over processes: positions in D parts, classes in M; starts them itself."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the report as HTML, JSON, JUnit and Markdown.")
    ] = None,
    isolate: Annotated[
        bool | None,
        typer.Option(
            "--isolate/--no-isolate",
            show_default=False,
            help="Run cases in a process that is replaced when it dies. Default: for an implementation of yours.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="With isolation: the longest a case may run.")] = 60,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, metavar="N", help="Worker processes, at the most. Default: one per core."),
    ] = None,
) -> None:
    """Run the conformance catalogue. Exit code: 0 all well, 1 silently wrong or crashed, 2 could not be run."""
    try:
        from unixent_conformance.cli import compare_command, run_command
    except ModuleNotFoundError as error:
        _fail(f'the suite needs {error.name}: pip install "unixent[conformance]"')
    if implementation is not None and not all(implementation.partition(":")):
        _fail(f"--implementation: expected module:function; got {implementation!r}")
    if thorough and not compare:
        _fail("--thorough: expected with --compare")
    if compare and any((framework, linear, strict, split, isolate, jobs)):
        _fail("--compare: expected with --implementation, --feature, --quick, --thorough or --report alone")
    if split and any((linear, strict, isolate, jobs)):
        _fail("--split: expected with --implementation, --framework, --feature, --quick or --report alone")
    chosen = [*(names or []), *(backend or [])]
    if not chosen and implementation is None:
        chosen = [status.name for status in unixent.backends() if status.installed]
    # A module beside the person who types is meant, as with `python -m`.
    sys.path.insert(0, str(Path.cwd()))
    common: dict[str, Any] = {"features": feature, "quick": quick, "out": report}
    at_once = jobs or (1 if isolate is False else _cores())
    shared: dict[str, Any] = {**common, "strict": strict, "timeout": timeout, "jobs": at_once}
    try:
        if compare:
            given = [*chosen, *([implementation] if implementation else [])]
            raise typer.Exit(compare_command(given, thorough=thorough, **common))
        code = run_command(
            chosen,
            implementation=implementation,
            framework=framework,
            split=split,
            linear=linear,
            isolate=isolate,
            **shared,
        )
    except UnixentError as error:
        _fail(str(error))
    except SyntaxError as error:
        _fail(f"{error.filename}:{error.lineno}: {error.msg}")
    raise typer.Exit(code)
