"""`unixent conformance`: run the catalogue, over processes too, compare implementations, list what there is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from unixent_conformance.cli import options
from unixent_conformance.cli.catalogue import app as listing
from unixent_conformance.cli.prompt import fail, import_from_here, suite_required, with_default

app = typer.Typer(
    cls=with_default("run"),
    help="""Run the conformance catalogue: does a cross-entropy mean what it should?

    `run` may be left out: `unixent conformance --backend numpy --quick`.""",
)
app.add_typer(listing, name="list")

# Not installed: where a checkout has the study of other libraries.
STUDY = Path("benchmarks", "peers")


@app.command()
def run(
    names: options.Backends = None,
    backend: options.Backend = None,
    implementation: options.Implementation = None,
    framework: options.Framework = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="Test the fused linear form, of (hidden, classifier, target).")
    ] = False,
    feature: options.Feature = None,
    quick: options.Quick = False,
    strict: options.Strict = False,
    report: options.Out = None,
    isolate: Annotated[
        bool | None,
        typer.Option(
            "--isolate/--no-isolate",
            show_default=False,
            help="Run cases in a process that is replaced when it dies. Default: for an implementation of yours.",
        ),
    ] = None,
    timeout: options.Timeout = 60,
    jobs: options.Jobs = None,
    modes: options.Modes = None,
    dtype: options.Dtypes = None,
    skip: options.Skip = None,
    xfails: options.Xfails = None,
    budget: options.Budget = None,
    device: options.Device = None,
    huge: options.Huge = False,
) -> None:
    """Run the catalogue on backends, or on a callable of yours.

    Exit code: 0 all well, 1 silently wrong or crashed, 2 could not be run, or nothing matches.
    """
    with suite_required():
        from unixent_conformance.cli import runs
    if isolate is False and (jobs or 1) > 1:
        fail(f"--no-isolate runs the cases in one process, this one; it takes no --jobs {jobs}")
    import_from_here()
    code = runs.run(
        options.chosen(names, backend, implementation),
        framework=framework,
        out=report,
        features=feature,
        quick=quick,
        strict=strict,
        linear=linear,
        isolate=isolate,
        timeout=timeout,
        jobs=1 if isolate is False else jobs or options.cores(),
        modes=modes,
        dtypes=dtype,
        skip=skip or (),
        expected_failures=xfails,
        budget=budget,
        device=device,
        huge=huge,
    )
    raise typer.Exit(code)


@app.command()
def split(
    grid: Annotated[str, typer.Argument(metavar="DxM", help="Positions in D parts, classes in M: 2x2.")],
    names: options.Backends = None,
    backend: options.Backend = None,
    implementation: options.Implementation = None,
    framework: options.Framework = None,
    feature: options.Feature = None,
    quick: options.Quick = False,
    report: options.Out = None,
) -> None:
    """Run the catalogue over several processes, which it starts.

    Exit code: 0 all well, 1 silently wrong or crashed, 2 could not be run, or nothing matches.
    """
    with suite_required():
        from unixent_conformance.cli import runs
        from unixent_conformance.split import parse
    try:
        data, model = parse(grid)
    except ValueError as error:
        fail(error)
    import_from_here()
    tested = options.chosen(names, backend, implementation)
    code = runs.split(tested, data=data, model=model, framework=framework, features=feature, quick=quick, out=report)
    raise typer.Exit(code)


@app.command()
def compare(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Backends, or module:function. Default: all installed backends."),
    ] = None,
    feature: options.Feature = None,
    quick: options.Quick = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Every case, also where a framework compiles each.")
    ] = False,
    report: options.Agreement = None,
) -> None:
    """Run every case through several implementations, and say how far apart each pair is.

    Exit code: 0 all agree, 1 two do not, 2 could not be run.
    """
    with suite_required():
        from unixent_conformance.cli import runs
    import_from_here()
    tested = names or options.installed()
    raise typer.Exit(runs.compare(tested, features=feature, quick=quick, thorough=thorough, out=report))


@app.command(
    "peers",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def peers(context: typer.Context) -> None:
    """Run the study of other libraries (in a checkout)."""
    if not (STUDY / "command.py").exists():
        fail(f"peers: the study of other libraries is not installed; run this in a checkout of unixent, with {STUDY}/")
    sys.path.insert(0, str(STUDY.parent.resolve()))
    with suite_required():
        from peers.command import app as study
    study(context.args, prog_name="unixent conformance peers")
